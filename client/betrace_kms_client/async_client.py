"""The client for asyncio."""

from collections.abc import Sequence
from typing import Any, TypeVar

import grpc
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan, InclusionProof

from betrace_kms_client import messages
from betrace_kms_client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT, normalised
from betrace_kms_client.credentials import File, Token, chosen, open_aio_channel
from betrace_kms_client.errors import from_rpc_error
from betrace_kms_client.messages import Context
from betrace_kms_client.results import (
    Ciphertext,
    DataKey,
    Plaintext,
    PublicKeys,
    SignedSpan,
    SpanRefusal,
    SpanSignature,
    Verdict,
)

R = TypeVar("R")


class AsyncKmsClient:
    """Calls the daemon at `target`: host:port, or unix:/path. Belongs to one event loop.

    A call takes at most `timeout` seconds, its retries included, and raises a KmsClientError if it fails. Once the
    daemon has answered, calls wait for it while it restarts, unless `wait_for_ready` is False; before that, one that is
    not there fails at once. What proves who the client is, and is not given, comes from the environment: see
    betrace_kms_client.credentials.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        wait_for_ready: bool = True,
        token_file: File = None,
        tls_ca_file: File = None,
        tls_cert_file: File = None,
        tls_key_file: File = None,
    ) -> None:
        files = chosen(token_file, tls_ca_file, tls_cert_file, tls_key_file)
        self.target = normalised(target)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._token = Token(files.token)
        self._answered = False
        self._channel = open_aio_channel(self.target, files)
        self._stub = KeyManagementServiceStub(self._channel)

    async def __aenter__(self) -> "AsyncKmsClient":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def generate_data_key(
        self,
        tenant_id: str,
        number_of_bytes: int = 32,
        context: Context | None = None,
        *,
        fresh: bool = False,
        timeout: float | None = None,
    ) -> DataKey:
        """Return a data key of 1 to 1,024 bytes; `fresh` makes it one that no other call gets."""
        request = messages.data_key_request(tenant_id, number_of_bytes, context, fresh)
        return messages.data_key(await self._call(self._stub.GenerateDataKey, request, timeout))

    async def encrypt(
        self, tenant_id: str, plaintext: bytes, context: Context | None = None, *, timeout: float | None = None
    ) -> Ciphertext:
        """Seal a payload into an AWS Encryption SDK message."""
        request = messages.encrypt_request(tenant_id, plaintext, context)
        return messages.ciphertext(await self._call(self._stub.Encrypt, request, timeout))

    async def decrypt(
        self, tenant_id: str, ciphertext_blob: bytes, context: Context | None = None, *, timeout: float | None = None
    ) -> Plaintext:
        """Open what `encrypt` sealed, or unwrap the `ciphertext_blob` of a data key."""
        request = messages.decrypt_request(tenant_id, ciphertext_blob, context)
        return messages.plaintext(await self._call(self._stub.Decrypt, request, timeout))

    async def re_encrypt(
        self,
        tenant_id: str,
        ciphertext_blob: bytes,
        context: Context | None = None,
        destination: Context | None = None,
        *,
        timeout: float | None = None,
    ) -> Ciphertext:
        """Seal what a ciphertext holds again, under today's keys, for the same context unless another is given."""
        request = messages.re_encrypt_request(tenant_id, ciphertext_blob, context, destination)
        return messages.resealed(await self._call(self._stub.ReEncrypt, request, timeout))

    async def sign_span(
        self, tenant_id: str, span: ComplianceSpan, *, return_payload: bool = False, timeout: float | None = None
    ) -> SpanSignature:
        """Sign a span with the tenant's active key, which is made at its first signature."""
        request = messages.sign_request(tenant_id, span, return_payload)
        return messages.signature(await self._call(self._stub.SignSpan, request, timeout))

    async def sign_spans(
        self,
        tenant_id: str,
        spans: Sequence[ComplianceSpan],
        *,
        proofs: bool = False,
        return_payload: bool = False,
        timeout: float | None = None,
    ) -> list[SpanSignature | SpanRefusal]:
        """Sign 1 to 1,000 spans, each for itself or, with `proofs`, under one signature; results are in order.

        A span that cannot be signed is refused alone.
        """
        request = messages.sign_batch_request(tenant_id, spans, proofs, return_payload)
        return messages.signatures(await self._call(self._stub.SignSpans, request, timeout))

    async def verify_span(
        self,
        tenant_id: str,
        span: ComplianceSpan,
        signature: bytes,
        key_id: str,
        proof: InclusionProof | None = None,
        *,
        timeout: float | None = None,
    ) -> Verdict:
        """Return whether this signature (64 bytes) of this key belongs to the span, by its proof if there is one."""
        request = messages.verify_request(tenant_id, span, signature, key_id, proof)
        return messages.verdict(await self._call(self._stub.VerifySpan, request, timeout))

    async def verify_spans(
        self, tenant_id: str, spans: Sequence[SignedSpan], *, timeout: float | None = None
    ) -> list[Verdict | SpanRefusal]:
        """Judge 1 to 1,000 signed spans; results are in order."""
        request = messages.verify_batch_request(tenant_id, spans)
        return messages.verdicts(await self._call(self._stub.VerifySpans, request, timeout))

    async def get_public_keys(self, tenant_id: str, *, timeout: float | None = None) -> PublicKeys:
        """Return every public key that the tenant ever had, oldest first."""
        request = messages.public_keys_request(tenant_id)
        return messages.public_keys(await self._call(self._stub.GetPublicKeys, request, timeout))

    async def _call(self, method: "grpc.aio.UnaryUnaryMultiCallable[Any, R]", request: Any, timeout: float | None) -> R:
        seconds = self._timeout if timeout is None else timeout
        try:
            try:
                response: R = await self._send(method, request, seconds)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED or not self._token.renewed():
                    raise
                response = await self._send(method, request, seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error
        self._answered = True
        return response

    def _send(self, method: Any, request: Any, seconds: float) -> Any:
        ready = self._wait_for_ready and self._answered
        return method(request, timeout=seconds, metadata=self._token.metadata(), wait_for_ready=ready)
