"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan, InclusionProof
from betrace_kms_envelope import KeyMaterial, Opening

from betrace_kms_client import files, messages
from betrace_kms_client.async_coalescer import AsyncCoalescer
from betrace_kms_client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT, normalised
from betrace_kms_client.credentials import File, Token, chosen, open_aio_channel
from betrace_kms_client.errors import from_rpc_error
from betrace_kms_client.files import Name, Progress
from betrace_kms_client.messages import Context, DataKeyItems, Items, MacItems
from betrace_kms_client.results import (
    Ciphertext,
    DataKey,
    ItemRefusal,
    Mac,
    MessageKey,
    Plaintext,
    PublicKeys,
    SignedSpan,
    SpanRefusal,
    SpanSignature,
    Verdict,
)
from betrace_kms_client.sealer import DEFAULT_TTL, MAX_MESSAGES, AsyncKmsSealer

R = TypeVar("R")


class AsyncKmsClient:
    """Calls the daemon at `target`: host:port, or unix:/path. Belongs to one event loop.

    A call takes at most `timeout` seconds, its retries included, and raises a KmsClientError if it fails. Once the
    daemon has answered, calls wait for it while it restarts, unless `wait_for_ready` is False; before that, one that is
    not there fails at once. What proves who the client is, and is not given, comes from the environment: see
    betrace_kms_client.credentials.

    With `coalesce`, calls of one turn of the event loop, or within `coalesce_delay` seconds, travel as one batch where
    they are of one tenant and kind; each has its own result, error and deadline: see docs/batching.md.
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
        coalesce: bool = False,
        coalesce_delay: float = 0.0,
    ) -> None:
        files = chosen(token_file, tls_ca_file, tls_cert_file, tls_key_file)
        self.target = normalised(target)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._token = Token(files.token)
        self._answered = False
        self._channel = open_aio_channel(self.target, files)
        self._stub = KeyManagementServiceStub(self._channel)
        self._coalescer = (
            AsyncCoalescer(self._call_alone, partial(getattr, self._stub), self.target, coalesce_delay)
            if coalesce
            else None
        )

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

    async def generate_data_keys(
        self, tenant_id: str, items: DataKeyItems, *, timeout: float | None = None
    ) -> list[DataKey | ItemRefusal]:
        """Return 1 to 1,000 data keys, each asked for by its length in bytes, context (or None) and `fresh`; in order.

        Items that are alike get one and the same key, unless they are fresh.
        """
        request = messages.data_keys_request(tenant_id, items)
        return messages.data_keys(await self._call(self._stub.GenerateDataKeys, request, timeout))

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

    async def generate_message_key(
        self, tenant_id: str, context: Context | None = None, *, timeout: float | None = None
    ) -> MessageKey:
        """Return a new data key (32 bytes) to seal messages with here. Each call asks KMS."""
        request = messages.message_key_request(tenant_id, context)
        return messages.message_key(await self._call(self._stub.GenerateMessageKey, request, timeout))

    async def open_message_key(
        self, tenant_id: str, header: bytes, context: Context | None = None, *, timeout: float | None = None
    ) -> KeyMaterial:
        """Return the data key of the message with this header: its first bytes, up to the end of its tag."""
        request = messages.open_key_request(tenant_id, header, context)
        return messages.opened_key(await self._call(self._stub.OpenMessageKey, request, timeout))

    async def encrypt_file(
        self,
        tenant_id: str,
        source: Name,
        target: Name,
        context: Context | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Seal a file of any size into a new one, here: only the key comes from the daemon."""
        key = await self.generate_message_key(tenant_id, context)
        await files.in_thread(lambda check: files.seal_file(key, source, target, check), progress)

    async def decrypt_file(
        self,
        tenant_id: str,
        source: Name,
        target: Name,
        context: Context | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Open a file of any size that `encrypt_file`, `encrypt` or an AWS Encryption SDK sealed into a new one.

        There is no `target` unless the whole of it has verified.
        """
        with files.refusals(), await asyncio.to_thread(open, source, "rb") as message:
            start = await asyncio.to_thread(files.read_start, message)
            if start.is_for_decrypt:
                whole = await asyncio.to_thread(files.read_for_decrypt, start, message)
                plaintext = (await self.decrypt(tenant_id, whole, context)).plaintext
                await asyncio.to_thread(files.write_file, plaintext, target)
            else:
                key = await self.open_message_key(tenant_id, start.header, context)
                await files.in_thread(lambda check: files.open_file(start, key, message, target, check), progress)

    async def encrypt_stream(
        self, tenant_id: str, content: AsyncIterable[bytes], context: Context | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a message with this content, in pieces, while the content comes in pieces of any size."""
        sealing = (await self.generate_message_key(tenant_id, context)).sealing()
        yield sealing.header
        async for piece in content:
            yield bytes(sealing.update(piece))
        yield sealing.finalize()

    async def decrypt_stream(
        self, tenant_id: str, message: AsyncIterable[bytes], context: Context | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the content of a message that comes in pieces of any size.

        Each piece has verified when it is yielded, but only the end of the iteration says that nothing is missing, and
        that the footer verifies if there is one: until then do nothing with it that cannot be undone.
        """
        with files.refusals():
            pieces, reader, start = aiter(message), files.StartReader(), None
            while start is None:
                start = reader.add(await anext(pieces, None))
            key = await self.open_message_key(tenant_id, start.header, context)
            opening = Opening(start.header, key.raw)
            yield opening.update(start.rest)
            async for piece in pieces:
                yield opening.update(piece)
            opening.finalize()

    def sealer(
        self,
        tenant_id: str,
        context: Context | None = None,
        *,
        ttl: float = DEFAULT_TTL,
        max_messages: int = MAX_MESSAGES,
    ) -> "AsyncKmsSealer":
        """Return what seals and opens small payloads here, under keys that it holds for at most `ttl` seconds."""
        return AsyncKmsSealer(self, tenant_id, context, ttl=ttl, max_messages=max_messages)

    async def encrypt_batch(
        self, tenant_id: str, items: Items, *, timeout: float | None = None
    ) -> list[Ciphertext | ItemRefusal]:
        """Seal 1 to 1,000 payloads, each given with its context (or None); results are in order.

        An item that cannot be sealed is refused alone.
        """
        request = messages.encrypt_batch_request(tenant_id, items)
        return messages.ciphertexts(await self._call(self._stub.EncryptBatch, request, timeout))

    async def decrypt_batch(
        self, tenant_id: str, items: Items, *, timeout: float | None = None
    ) -> list[Plaintext | ItemRefusal]:
        """Open 1 to 1,000 ciphertexts, each given with its context (or None); results are in order."""
        request = messages.decrypt_batch_request(tenant_id, items)
        return messages.plaintexts(await self._call(self._stub.DecryptBatch, request, timeout))

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

    async def generate_mac(
        self, tenant_id: str, purpose: str, message: bytes, bits: int = 256, *, timeout: float | None = None
    ) -> Mac:
        """Return the leftmost 8 to 256 bits of a message's MAC, under a key of the tenant and purpose that stays."""
        request = messages.mac_request(tenant_id, purpose, message, bits)
        return messages.mac(await self._call(self._stub.GenerateMac, request, timeout))

    async def generate_mac_batch(
        self, tenant_id: str, items: MacItems, *, timeout: float | None = None
    ) -> list[Mac | ItemRefusal]:
        """Return the MACs of 1 to 1,000 messages, each with its purpose and bits; results are in order."""
        request = messages.mac_batch_request(tenant_id, items)
        return messages.macs(await self._call(self._stub.GenerateMacBatch, request, timeout))

    async def verify_mac(
        self, tenant_id: str, purpose: str, message: bytes, mac: bytes, bits: int = 0, *, timeout: float | None = None
    ) -> bool:
        """Return whether a MAC of at least 128 bits is the message's; without `bits` all bits of it count."""
        request = messages.verify_mac_request(tenant_id, purpose, message, mac, bits)
        return (await self._call(self._stub.VerifyMac, request, timeout)).mac_valid

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
        call = self._call_alone if self._coalescer is None else self._coalescer.call
        response: R = await call(method, request, seconds)
        return response

    async def _call_alone(self, method: Any, request: Any, seconds: float) -> Any:
        try:
            try:
                response = await self._send(method, request, seconds)
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
