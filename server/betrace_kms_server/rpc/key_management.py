"""KeyManagementService: checks what came over the wire, asks the core, and puts the answer into a message."""

from concurrent.futures import Executor
from typing import Any

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import key_management_pb2_grpc

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.tenancy import check_caller_context, check_tenant_id
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.data_keys.macs import Macs
from betrace_kms_server.rpc.data_key_batches import DataKeyBatchCalls
from betrace_kms_server.rpc.macs import MacCalls
from betrace_kms_server.rpc.payloads import check_ciphertext, check_number_of_bytes, check_plaintext
from betrace_kms_server.rpc.spans import SpanCalls
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.telemetry.observers import MessageShape, observed_as

_Context = grpc.aio.ServicerContext[Any, Any]

_OF_DATA_KEYS = MessageShape("encryption", response_key_id=True)


class KeyManagementService(
    DataKeyBatchCalls, MacCalls, SpanCalls, key_management_pb2_grpc.KeyManagementServiceServicer
):
    """The service that callers use. `threads` runs two at a time, for large batches of spans."""

    def __init__(
        self, keyring: KeyRing, macs: Macs, signer: Signer, *, threads: Executor, max_payload_bytes: int
    ) -> None:
        self._keyring = keyring
        self._macs = macs
        self._signer = signer
        self._threads = threads
        self._max_payload_bytes = max_payload_bytes

    @observed_as(_OF_DATA_KEYS)
    async def GenerateDataKey(
        self, request: pb.GenerateDataKeyRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.GenerateDataKeyResponse:
        """Return a data key, cached unless `fresh`."""
        tenant_id = check_tenant_id(request.tenant_id)
        key = await self._keyring.data_key(
            tenant_id,
            check_number_of_bytes(request),
            check_caller_context(request.encryption_context),
            fresh=request.fresh,
            event=event,
        )
        return pb.GenerateDataKeyResponse(
            plaintext=bytes(key.material.raw), ciphertext_blob=key.wrapped.blob, key_id=key.wrapped.master_key_arn
        )

    @observed_as(_OF_DATA_KEYS)
    async def Encrypt(
        self, request: pb.EncryptRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.EncryptResponse:
        """Seal a payload."""
        tenant_id = check_tenant_id(request.tenant_id)
        plaintext = check_plaintext(request.plaintext, self._max_payload_bytes)
        sealed = await self._keyring.seal(tenant_id, plaintext, check_caller_context(request.encryption_context), event)
        return pb.EncryptResponse(ciphertext_blob=sealed.ciphertext, key_id=sealed.master_key_arn)

    @observed_as(_OF_DATA_KEYS)
    async def Decrypt(
        self, request: pb.DecryptRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.DecryptResponse:
        """Open a ciphertext of Encrypt, or unwrap a key of GenerateDataKey."""
        tenant_id = check_tenant_id(request.tenant_id)
        ciphertext = check_ciphertext(request.ciphertext_blob)  # each reading of the field is a copy
        opened = await self._keyring.open(
            tenant_id, ciphertext, check_caller_context(request.encryption_context), event
        )
        return pb.DecryptResponse(plaintext=opened.plaintext, key_id=opened.master_key_arn)

    @observed_as(_OF_DATA_KEYS)
    async def ReEncrypt(
        self, request: pb.ReEncryptRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.ReEncryptResponse:
        """Seal what a ciphertext holds again, under today's keys."""
        tenant_id = check_tenant_id(request.tenant_id)
        ciphertext = check_ciphertext(request.ciphertext_blob)
        sealed = await self._keyring.reseal(
            tenant_id,
            ciphertext,
            check_caller_context(request.encryption_context),
            check_caller_context(request.destination_encryption_context, "destination_encryption_context"),
            event,
        )
        return pb.ReEncryptResponse(ciphertext_blob=sealed.ciphertext, key_id=sealed.master_key_arn)

    @observed_as(_OF_DATA_KEYS)
    async def GenerateMessageKey(
        self, request: pb.GenerateMessageKeyRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.GenerateMessageKeyResponse:
        """Return a new data key for messages that the caller seals."""
        tenant_id = check_tenant_id(request.tenant_id)
        key = await self._keyring.message_key(tenant_id, check_caller_context(request.encryption_context), event)
        encrypted = key.encrypted
        return pb.GenerateMessageKeyResponse(
            plaintext=bytes(key.material.raw),
            encrypted_data_key=pb.EncryptedDataKey(
                provider_id=encrypted.provider_id,
                provider_info=encrypted.provider_info,
                ciphertext=encrypted.ciphertext,
            ),
            header_context=key.context,
            key_id=key.master_key_arn,
        )

    @observed_as(_OF_DATA_KEYS)
    async def OpenMessageKey(
        self, request: pb.OpenMessageKeyRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.OpenMessageKeyResponse:
        """Return the data key of a message that the caller opens."""
        tenant_id = check_tenant_id(request.tenant_id)
        if not request.message_header:
            raise InvalidRequest("message_header is empty: send the first bytes of the message, up to its first frame")
        message = self._keyring.parse(request.message_header)
        caller = check_caller_context(request.encryption_context)
        key = await self._keyring.opening_key(tenant_id, message, caller, event)
        return pb.OpenMessageKeyResponse(
            plaintext=bytes(key.material.raw), header_context=message.context, key_id=key.master_key_arn
        )
