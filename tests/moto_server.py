"""moto as the AWS of our tests: an HTTP server on 127.0.0.1 that refuses what AWS refuses.

moto forgives what real KMS does not, and a test that passes against it would prove little. While a server of this
module runs, and only then, these gaps are closed:

- A key that is disabled, pending deletion, or not meant for encrypt and decrypt does neither.
- Decrypt tells rubbish (InvalidCiphertextException) from another key's ciphertext (IncorrectKeyException), and both
  from a ciphertext of an impossible length (ValidationException).
- An encryption context is authenticated pair by pair, not as one run of text, and may not be too long.
- A multi-Region key has an id of the real form, and a replica is a key with a state of its own.
- Calls that change a key's state take its ARN.
- A symmetric key has no RSA pair beside it, which would take moto a while to make.
- DynamoDB runs one action at a time: moto's conditional writes are not atomic under threads.

moto keeps its state in the process, so one server at a time. IAM denials, throttling and latency are beyond it.

It also stands in for AWS on a developer's machine; this prints a key ARN for `aws.kms.master-key-id` and serves until
Ctrl-C::

    python tests/moto_server.py 5555 --create-key
"""

import argparse
import logging
import socket
import struct
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from moto.core.exceptions import JsonRESTError
from moto.dynamodb.responses import DynamoHandler
from moto.kms import models, responses, utils
from moto.server import ThreadedMotoServer

ACCOUNT = "123456789012"
REGION = "us-east-1"
_MAX_CIPHERTEXT_BYTES = 6144  # AWS KMS API reference, Decrypt
_MAX_CONTEXT_BYTES = 8192  # AWS KMS API reference, Encrypt


class MotoServer:
    """A running server: `url` is its endpoint, `calls` counts the KMS calls that it got, by action."""

    def __init__(self, url: str, calls: Counter[str]) -> None:
        self.url = url
        self.calls = calls

    def kms(self, region: str = REGION) -> models.KmsBackend:
        """Return moto's own model of KMS in a region, to look at keys and to change their state."""
        backend: models.KmsBackend = models.kms_backends[ACCOUNT][region]
        return backend

    def create_key(
        self, *, usage: str = "ENCRYPT_DECRYPT", spec: str = "SYMMETRIC_DEFAULT", multi_region: bool = False
    ) -> str:
        """Make a key in us-east-1 and return its ARN."""
        key = self.kms().create_key(None, usage, spec, "made by a test", None, multi_region)
        return str(key.arn)


@contextmanager
def moto_server(port: int = 0) -> Iterator[MotoServer]:
    """Run a server on 127.0.0.1, by default on a free port. Moto is as it was once the server has stopped."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request otherwise
    calls: Counter[str] = Counter()
    with ExitStack() as resources:
        _count_calls(resources, calls)
        _refuse_unusable_keys(resources)
        _authenticate_contexts(resources)
        _make_multi_region_keys_real(resources)
        _take_arns(resources)
        _make_symmetric_keys_fast(resources)
        _serialise_dynamodb(resources)
        server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        server.start()
        resources.callback(server.stop)
        host, bound_port = server.get_host_and_port()
        yield MotoServer(f"http://{host}:{bound_port}", calls)


def _refusal(code: str, message: str) -> JsonRESTError:
    refusal = JsonRESTError(code, message)
    refusal.code = 400
    return refusal


def _count_calls(patches: ExitStack, calls: Counter[str]) -> None:
    original = responses.KmsResponse.call_action
    lock = threading.Lock()

    def call_action(self: responses.KmsResponse) -> Any:
        with lock:
            calls[self._get_action()] += 1
        return original(self)

    patches.enter_context(patch.object(responses.KmsResponse, "call_action", call_action))


def _refuse_unusable_keys(patches: ExitStack) -> None:
    original_encrypt, original_decrypt = models.KmsBackend.encrypt, models.KmsBackend.decrypt

    def check_usable(key: models.Key) -> None:
        if key.key_state == "Disabled":
            raise _refusal("DisabledException", f"{key.arn} is disabled.")
        if key.key_state != "Enabled":
            raise _refusal("KMSInvalidStateException", f"{key.arn} is {key.key_state}.")
        if key.key_usage not in (None, "", "ENCRYPT_DECRYPT"):
            raise _refusal("InvalidKeyUsageException", f"{key.arn} is for {key.key_usage}.")

    def encrypt(
        self: models.KmsBackend, key_id: str, plaintext: bytes, encryption_context: dict[str, str]
    ) -> tuple[bytes, str]:
        check_usable(self.keys[self.any_id_to_key_id(key_id)])
        return original_encrypt(self, key_id, plaintext, encryption_context)

    def decrypt(
        self: models.KmsBackend, ciphertext_blob: bytes, encryption_context: dict[str, str], key_id: str | None = None
    ) -> tuple[bytes, str]:
        if not 1 <= len(ciphertext_blob) <= _MAX_CIPHERTEXT_BYTES:
            raise _refusal("ValidationException", "1 validation error detected: Value at 'ciphertextBlob'")
        try:
            wrapped_by = utils._deserialize_ciphertext_blob(ciphertext_blob).key_id
        except (struct.error, UnicodeDecodeError):
            raise _refusal("InvalidCiphertextException", "") from None
        if wrapped_by not in self.keys:
            raise _refusal("InvalidCiphertextException", "")
        if key_id is not None and self.any_id_to_key_id(key_id) != wrapped_by:
            raise _refusal("IncorrectKeyException", "The key ID in the request does not identify the right key.")
        check_usable(self.keys[wrapped_by])
        return original_decrypt(self, ciphertext_blob, encryption_context, key_id)

    patches.enter_context(patch.object(models.KmsBackend, "encrypt", encrypt))
    patches.enter_context(patch.object(models.KmsBackend, "decrypt", decrypt))


def _authenticate_contexts(patches: ExitStack) -> None:
    def serialised(encryption_context: dict[str, str]) -> bytes:
        parts = [part.encode() for pair in sorted(encryption_context.items()) for part in pair]
        if sum(map(len, parts)) > _MAX_CONTEXT_BYTES:
            raise _refusal("ValidationException", "The encryption context is too long.")
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    patches.enter_context(patch.object(utils, "_serialize_encryption_context", serialised))


def _make_multi_region_keys_real(patches: ExitStack) -> None:
    original_replicate, original_validate = models.KmsBackend.replicate_key, responses.KmsResponse._validate_cmk_id

    def generate_key_id(multi_region: bool = False) -> str:
        return f"mrk-{uuid.uuid4().hex}" if multi_region else str(uuid.uuid4())

    def validate_cmk_id(self: responses.KmsResponse, key_id: str) -> None:
        if key_id not in self.kms_backend.keys:  # moto's pattern does not know mrk- and 32 digits
            original_validate(self, key_id)

    def replicate_key(self: models.KmsBackend, key_id: str, replica_region: str) -> models.Key:
        primary = self.keys[self.any_id_to_key_id(key_id)]
        if not primary.multi_region:
            raise _refusal("UnsupportedOperationException", f"{primary.arn} is not a multi-Region key.")
        replica = original_replicate(self, primary.id, replica_region)
        replica.multi_region_configuration = primary.multi_region_configuration | {"MultiRegionKeyType": "REPLICA"}
        replica.key_state, replica.enabled = "Enabled", True
        return replica

    patches.enter_context(patch.object(models, "generate_key_id", generate_key_id))
    patches.enter_context(patch.object(responses.KmsResponse, "_validate_cmk_id", validate_cmk_id))
    patches.enter_context(patch.object(models.KmsBackend, "replicate_key", replicate_key))


def _take_arns(patches: ExitStack) -> None:
    def taking_arns(original: Any) -> Any:
        def change_state(self: models.KmsBackend, key_id: str, *args: Any, **kwargs: Any) -> Any:
            return original(self, self.any_id_to_key_id(key_id), *args, **kwargs)

        return change_state

    for name in ("enable_key", "disable_key", "schedule_key_deletion", "cancel_key_deletion"):
        original = getattr(models.KmsBackend, name)
        patches.enter_context(patch.object(models.KmsBackend, name, taking_arns(original)))


def _make_symmetric_keys_fast(patches: ExitStack) -> None:
    original = utils.generate_private_key

    def generate_private_key(key_spec: str) -> Any:
        return None if key_spec == "SYMMETRIC_DEFAULT" else original(key_spec)

    patches.enter_context(patch.object(models, "generate_private_key", generate_private_key))


def _serialise_dynamodb(patches: ExitStack) -> None:
    original = DynamoHandler.call_action
    lock = threading.RLock()

    def call_action(self: DynamoHandler) -> Any:
        with lock:
            return original(self)

    patches.enter_context(patch.object(DynamoHandler, "call_action", call_action))


def _main() -> None:
    parser = argparse.ArgumentParser(description="Run moto on 127.0.0.1 until Ctrl-C.")
    parser.add_argument("port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("--create-key", action="store_true", help="make a KMS key in us-east-1 and print its ARN")
    arguments = parser.parse_args()
    try:
        socket.create_server(("127.0.0.1", arguments.port)).close()  # moto would wait for ever for a port in use
    except (OSError, OverflowError) as cause:
        parser.error(f"port {arguments.port} cannot be used: {cause}")
    with suppress(KeyboardInterrupt), moto_server(arguments.port) as server:
        if arguments.create_key:
            print(server.create_key(), flush=True)
        print(f"moto listens on {server.url}", file=sys.stderr, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _main()
