"""Cloud KMS, played on loopback: a gRPC server on the protos that google-cloud-kms has, with real AES-256-GCM.

It checks what Cloud KMS checks of our five calls: names, routing header, purposes, states of versions, checksums,
sizes, permissions and, where it has tokens, access tokens. Texts and details of its errors are those of Cloud KMS.
docs/providers/gcp.md has what it does not play.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import grpc
from betrace_kms_server.providers.gcp.sdk import (
    CryptoKey,
    CryptoKeyVersion,
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    GenerateRandomBytesRequest,
    GenerateRandomBytesResponse,
    GetCryptoKeyRequest,
    ProtectionLevel,
    crc32c,
)
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.iam.v1.iam_policy_pb2 import TestIamPermissionsRequest as PermissionsRequest
from google.iam.v1.iam_policy_pb2 import TestIamPermissionsResponse as PermissionsResponse
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

State = CryptoKeyVersion.CryptoKeyVersionState
Purpose = CryptoKey.CryptoKeyPurpose
PARENT = "projects/betrace-test/locations/europe-west3"
ROLE = frozenset(
    {
        "cloudkms.cryptoKeyVersions.useToEncrypt",
        "cloudkms.cryptoKeyVersions.useToDecrypt",
        "cloudkms.cryptoKeys.get",
        "cloudkms.locations.generateRandomBytes",
    }
)
"""What docs/providers/gcp.md lets the daemon do."""
_NONCE_BYTES = 12
_MAX_SOFTWARE_BYTES, _MAX_HSM_BYTES = 65_536, 8_192
_ACTIONS = {
    "Encrypt": "cloudkms.cryptoKeyVersions.useToEncrypt",
    "Decrypt": "cloudkms.cryptoKeyVersions.useToDecrypt",
    "GetCryptoKey": "cloudkms.cryptoKeys.get",
    "GenerateRandomBytes": "cloudkms.locations.generateRandomBytes",
}


class Refused(Exception):
    """An error of Cloud KMS: a status, its text, and its details."""

    def __init__(self, code: grpc.StatusCode, text: str, *details: Any) -> None:
        super().__init__(text)
        self.code, self.text, self.details = code, text, details

    @property
    def status(self) -> Any:
        """The status with its details, as it travels."""
        message = status_pb2.Status(code=getattr(code_pb2, self.code.name), message=self.text)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            message.details.append(packed)
        return rpc_status.to_status(message)


def denied(permission: str, resource: str) -> Refused:
    """Return the error for a permission that is missing, or a resource that is."""
    return Refused(
        grpc.StatusCode.PERMISSION_DENIED,
        f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
        error_details_pb2.ErrorInfo(
            reason="IAM_PERMISSION_DENIED",
            domain="cloudkms.googleapis.com",
            metadata={"permission": permission, "resource": resource},
        ),
    )


@dataclass
class PlayedKey:
    """A key. `answer` alters each good answer about it, `fail` raises in place of one."""

    name: str
    purpose: int = Purpose.ENCRYPT_DECRYPT
    level: int = ProtectionLevel.SOFTWARE
    wait: timedelta = timedelta(days=30)
    granted: set[str] = field(default_factory=lambda: set(ROLE))
    states: list[int] = field(default_factory=lambda: [State.ENABLED])
    primary: int = 1
    """Number of the primary version; 0 if there is none."""
    answer: Callable[[str, Any], None] = lambda method, message: None
    fail: Callable[[str], None] = lambda method: None
    calls: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    """Method and metadata of each call."""
    secret: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    def rotate(self) -> None:
        """Make a new version, the primary one."""
        self.states.append(State.ENABLED)
        self.primary = len(self.states)

    def version(self, number: int) -> str:
        """Return the name of a version."""
        return f"{self.name}/cryptoKeyVersions/{number}"

    def cipher(self, number: int) -> AESGCM:
        """Return the cipher of a version."""
        return AESGCM(hashlib.sha256(self.secret + number.to_bytes(4, "big")).digest())

    def heading(self, number: int) -> bytes:
        """Return what the ciphertexts of a version begin with; real ones begin with these two bytes as well."""
        return b"\x0a\x24" + hashlib.sha512(self.secret + self.version(number).encode()).digest()[:36]

    def usable(self, number: int) -> None:
        """Raise if a version is not enabled."""
        state = State(self.states[number - 1])
        if state != State.ENABLED:
            text = f"{self.version(number)} is not enabled, current state is: {state.name}."
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=f"KEY_{state.name}", subject=self.version(number), description=text
            )
            details = error_details_pb2.PreconditionFailure(violations=[violation])
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text, details)


class CloudKmsServer:
    """Keys, and who may use them. `tokens` are the access tokens that it takes; without any, all callers are known."""

    def __init__(self) -> None:
        self.address = ""
        self.keys: dict[str, PlayedKey] = {}
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        """Its endpoint in the clear."""
        return f"http://{self.address}"

    def make_key(self, **options: Any) -> PlayedKey:
        """Make a key of a new name."""
        name = f"{PARENT}/keyRings/betrace/cryptoKeys/key-{secrets.token_hex(8)}"
        self.keys[name] = PlayedKey(name, **options)
        return self.keys[name]

    def respond(self, method: str, request: Any, metadata: Mapping[str, str]) -> Any:
        """Return the answer to a request. Raises Refused."""
        if self.tokens and metadata.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "Request had invalid authentication credentials.")
        parameter = {"GenerateRandomBytes": "location", "TestIamPermissions": "resource"}.get(method, "name")
        resource: str = getattr(request, parameter)
        if unquote(metadata.get("x-goog-request-params", "")) != f"{parameter}={resource}":
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "The request was not routed.")
        if method == "GenerateRandomBytes":  # of a location, so that the key with hooks is the last one made
            key = list(self.keys.values())[-1]
        elif (known := self.keys.get(resource)) is not None:
            key = known
        elif resource.startswith(PARENT):
            raise Refused(grpc.StatusCode.NOT_FOUND, f"CryptoKey {resource} not found.")
        else:
            raise denied(_ACTIONS.get(method, ""), resource)
        key.calls.append((method, metadata))
        key.fail(method)
        permission = _ACTIONS.get(method)
        if permission is not None and permission not in key.granted:
            raise denied(permission, resource)
        message = getattr(self, f"_{method}")(key, request)
        key.answer(method, message)
        return message

    def _GetCryptoKey(self, key: PlayedKey, _request: GetCryptoKeyRequest) -> CryptoKey:
        primary = None
        if key.primary:
            primary = CryptoKeyVersion(
                name=key.version(key.primary), state=key.states[key.primary - 1], protection_level=key.level
            )
        return CryptoKey(name=key.name, purpose=key.purpose, primary=primary, destroy_scheduled_duration=key.wait)

    def _Encrypt(self, key: PlayedKey, request: EncryptRequest) -> EncryptResponse:
        if key.purpose != Purpose.ENCRYPT_DECRYPT:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, f"The purpose {Purpose(key.purpose).name} does not encrypt."
            )
        key.usable(key.primary)
        data = request.additional_authenticated_data
        _verify("plaintext", request.plaintext, request.plaintext_crc32c)
        _verify("additional_authenticated_data", data, request.additional_authenticated_data_crc32c)
        _limit(key, request.plaintext, data)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = key.heading(key.primary) + nonce + key.cipher(key.primary).encrypt(nonce, request.plaintext, data)
        return EncryptResponse(
            name=key.version(key.primary),
            ciphertext=sealed,
            ciphertext_crc32c=crc32c(sealed),
            verified_plaintext_crc32c=request.plaintext_crc32c is not None,
            verified_additional_authenticated_data_crc32c=request.additional_authenticated_data_crc32c is not None,
            protection_level=key.level,
        )

    def _Decrypt(self, key: PlayedKey, request: DecryptRequest) -> DecryptResponse:
        data, sealed = request.additional_authenticated_data, request.ciphertext
        _verify("ciphertext", sealed, request.ciphertext_crc32c)
        _verify("additional_authenticated_data", data, request.additional_authenticated_data_crc32c)
        numbers = range(1, len(key.states) + 1)
        number = next((each for each in numbers if sealed.startswith(key.heading(each))), None)
        if number is None:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                "Decryption failed: verify that 'name' refers to the correct CryptoKey.",
            )
        key.usable(number)
        rest = sealed[len(key.heading(number)) :]
        try:
            plaintext = key.cipher(number).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], data)
        except (InvalidTag, ValueError):
            text = "Decryption failed: the ciphertext is invalid."
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text) from None
        return DecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=crc32c(plaintext),
            used_primary=number == key.primary,
            protection_level=key.level,
        )

    def _GenerateRandomBytes(self, _key: PlayedKey, request: GenerateRandomBytesRequest) -> GenerateRandomBytesResponse:
        if request.protection_level != ProtectionLevel.HSM or not 8 <= request.length_bytes <= 1024:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "length_bytes must be 8 to 1024, protection_level HSM.")
        data = os.urandom(request.length_bytes)
        return GenerateRandomBytesResponse(data=data, data_crc32c=crc32c(data))

    def _TestIamPermissions(self, key: PlayedKey, request: PermissionsRequest) -> PermissionsResponse:
        return PermissionsResponse(permissions=[each for each in request.permissions if each in key.granted])


def _verify(name: str, content: bytes, checksum: object) -> None:
    if checksum is not None and checksum != crc32c(content):
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"The checksum in field {name}_crc32c did not match the data in field {name}.",
        )


def _limit(key: PlayedKey, plaintext: bytes, data: bytes) -> None:
    software = key.level == ProtectionLevel.SOFTWARE
    most = max(len(plaintext), len(data)) if software else len(plaintext) + len(data)
    if most > (_MAX_SOFTWARE_BYTES if software else _MAX_HSM_BYTES):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "The plaintext or the additional data is too long.")


def _handlers(server: CloudKmsServer) -> list[grpc.GenericRpcHandler]:
    def handler(method: str, request: Any, response: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        def respond(message: Any, context: grpc.ServicerContext) -> Any:
            metadata = {name: str(value) for name, value in context.invocation_metadata()}
            try:
                return server.respond(method, message, metadata)
            except Refused as refusal:
                context.abort_with_status(refusal.status)

        # proto-plus's classes serialize by functions of the class, protobuf's by methods
        plus = hasattr(request, "pb")
        return grpc.unary_unary_rpc_method_handler(
            respond,
            request_deserializer=request.deserialize if plus else request.FromString,
            response_serializer=response.serialize if plus else response.SerializeToString,
        )

    kms = {
        "Encrypt": handler("Encrypt", EncryptRequest, EncryptResponse),
        "Decrypt": handler("Decrypt", DecryptRequest, DecryptResponse),
        "GetCryptoKey": handler("GetCryptoKey", GetCryptoKeyRequest, CryptoKey),
        "GenerateRandomBytes": handler("GenerateRandomBytes", GenerateRandomBytesRequest, GenerateRandomBytesResponse),
    }
    iam = {"TestIamPermissions": handler("TestIamPermissions", PermissionsRequest, PermissionsResponse)}
    return [
        grpc.method_handlers_generic_handler("google.cloud.kms.v1.KeyManagementService", kms),
        grpc.method_handlers_generic_handler("google.iam.v1.IAMPolicy", iam),
    ]


@contextmanager
def cloud_kms_server(tls: tuple[bytes, bytes] | None = None) -> Iterator[CloudKmsServer]:
    """Run a server in threads of this process. `tls` is its certificate and its key, in PEM."""
    played = CloudKmsServer()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(_handlers(played))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        certificate, key = tls
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    played.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield played
    finally:
        server.stop(None).wait()
