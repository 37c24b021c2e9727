"""What the soak calls: every method, well and badly. Each kind of call has a share of the mix."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_envelope import EncryptedDataKey, Sealer

WARM = 20
SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
BAD_SPAN = ComplianceSpan(trace_id=b"short", name="user.login")
SHARES = {
    "sealed": 20,
    "signed": 20,
    "keys": 20,
    "items": 4,
    "MACs": 4,
    "batches": 4,
    "refused": 10,
    "left": 10,
    "too late": 5,
    "new tenants": 5,
    "operated": 1,
}
"""Kinds of calls, and how many of the mix each has. A kind makes one to five calls."""
LEFT = "left by the caller"


class Caller:
    """Makes calls of all kinds, and counts by kind and outcome how they ended."""

    def __init__(
        self, channel: grpc.aio.Channel, admin: grpc.aio.Channel, outcomes: Counter[tuple[str, str]], seed: int
    ) -> None:
        self._kms: Any = KeyManagementServiceStub(channel)
        self._admin: Any = KmsAdminServiceStub(admin)
        self._outcomes = outcomes
        self._random = random.Random(seed)  # noqa: S311  # a mix of calls, not secrets
        self._new = 0
        self._seed = seed
        self._kind = ""
        self._kinds: Mapping[str, Callable[[str], Awaitable[None]]] = {
            "sealed": self._seal,
            "signed": self._sign,
            "keys": self._get_keys,
            "items": self._call_items,
            "MACs": self._make_macs,
            "batches": self._sign_batch,
            "refused": self._be_refused,
            "left": self._leave,
            "too late": self._be_late,
            "new tenants": self.begin_tenant,
            "operated": self._operate,
        }

    async def run(self, over: asyncio.Event, shares: Mapping[str, int] = SHARES) -> None:
        """Call until it is over."""
        kinds = [kind for kind, share in shares.items() for _ in range(share)]
        while not over.is_set():
            self._kind = self._random.choice(kinds)
            await self._kinds[self._kind](f"warm-{self._random.randrange(WARM)}")

    async def begin_tenant(self, _: str = "") -> None:
        """Make the first calls of a tenant, which make its keys."""
        tenant = self._next()
        await self._ask(self._kms.Encrypt, pb.EncryptRequest(tenant_id=tenant, plaintext=b"x"))
        await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=SPAN))

    async def _ask(self, call: Callable[..., Awaitable[Any]], request: Any, seconds: float = 30.0) -> Any:
        try:
            answer = await call(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            self._outcomes[self._kind, error.code().name] += 1
            return None
        self._outcomes[self._kind, "OK"] += 1
        return answer

    async def _seal(self, tenant: str) -> None:
        sealed = await self._ask(self._kms.Encrypt, pb.EncryptRequest(tenant_id=tenant, plaintext=b"x" * 300))
        if sealed:
            blob = sealed.ciphertext_blob
            await self._ask(self._kms.Decrypt, pb.DecryptRequest(tenant_id=tenant, ciphertext_blob=blob))
            await self._ask(self._kms.ReEncrypt, pb.ReEncryptRequest(tenant_id=tenant, ciphertext_blob=blob))

    async def _sign(self, tenant: str) -> None:
        signed = await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=SPAN))
        if signed:
            made = {"span": SPAN, "signature": signed.signature, "key_id": signed.key_id}
            await self._ask(self._kms.VerifySpan, pb.VerifySpanRequest(tenant_id=tenant, **made))
            spans = [pb.SignedSpan(**made)] * 5
            await self._ask(self._kms.VerifySpans, pb.VerifySpansRequest(tenant_id=tenant, spans=spans))

    async def _get_keys(self, tenant: str) -> None:
        await self._ask(self._kms.GenerateDataKey, pb.GenerateDataKeyRequest(tenant_id=tenant, key_spec=pb.AES_256))
        await self._ask(self._kms.GetPublicKeys, pb.GetPublicKeysRequest(tenant_id=tenant))
        made = await self._ask(self._kms.GenerateMessageKey, pb.GenerateMessageKeyRequest(tenant_id=tenant))
        if made:
            wrapped = made.encrypted_data_key
            key = EncryptedDataKey(wrapped.provider_id, wrapped.provider_info, wrapped.ciphertext)
            header = Sealer(key, dict(made.header_context)).seal(b"", made.plaintext)
            await self._ask(self._kms.OpenMessageKey, pb.OpenMessageKeyRequest(tenant_id=tenant, message_header=header))

    async def _call_items(self, tenant: str) -> None:
        items = [pb.EncryptBatchItem(plaintext=b"x" * 64)] * 50
        sealed = await self._ask(self._kms.EncryptBatch, pb.EncryptBatchRequest(tenant_id=tenant, items=items))
        if sealed:
            blobs = [pb.DecryptBatchItem(ciphertext_blob=each.ciphertext_blob) for each in sealed.results]
            blobs.append(pb.DecryptBatchItem(ciphertext_blob=b"nonsense"))
            await self._ask(self._kms.DecryptBatch, pb.DecryptBatchRequest(tenant_id=tenant, items=blobs))

    async def _make_macs(self, tenant: str) -> None:
        asked: dict[str, Any] = {"purpose": "email", "message": b"someone@example.org"}
        made = await self._ask(self._kms.GenerateMac, pb.GenerateMacRequest(tenant_id=tenant, **asked))
        if made:
            await self._ask(self._kms.VerifyMac, pb.VerifyMacRequest(tenant_id=tenant, mac=made.mac, **asked))
        items = [pb.GenerateMacBatchItem(**asked)] * 50
        await self._ask(self._kms.GenerateMacBatch, pb.GenerateMacBatchRequest(tenant_id=tenant, items=items))

    async def _sign_batch(self, tenant: str) -> None:
        mode = self._random.choice([pb.EACH, pb.BATCH_PROOF])
        spans = [SPAN] * 50 + [BAD_SPAN]
        await self._ask(self._kms.SignSpans, pb.SignSpansRequest(tenant_id=tenant, spans=spans, mode=mode))

    async def _be_refused(self, tenant: str) -> None:
        await self._ask(self._kms.Encrypt, pb.EncryptRequest(tenant_id="no tenant", plaintext=b"x"))
        await self._ask(self._kms.Decrypt, pb.DecryptRequest(tenant_id=tenant, ciphertext_blob=b"nonsense" * 20))
        await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=BAD_SPAN))

    async def _leave(self, tenant: str) -> None:
        # What takes the daemon a while, or most callers would be gone before their calls arrive.
        new = self._next() if self._random.random() < 0.1 else tenant
        if self._random.random() < 0.5:
            call = self._kms.Encrypt(pb.EncryptRequest(tenant_id=new, plaintext=b"x" * 100_000), timeout=30)
        else:
            request = pb.SignSpansRequest(tenant_id=tenant, spans=[SPAN] * 100, mode=pb.EACH)
            call = self._kms.SignSpans(request, timeout=30)
        await asyncio.sleep(self._random.uniform(0, 0.02))
        call.cancel()
        code = await call.code()
        self._outcomes[self._kind, LEFT if code is grpc.StatusCode.CANCELLED else code.name] += 1

    async def _be_late(self, tenant: str) -> None:
        await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=SPAN), 0.001)

    async def _operate(self, tenant: str) -> None:
        await self._ask(self._admin.InvalidateTenant, admin_pb2.InvalidateTenantRequest(tenant_id=tenant))
        await self._ask(self._admin.GetStatus, admin_pb2.GetStatusRequest())
        if self._random.random() < 0.05:  # each makes a row that GetPublicKeys returns from then on
            new = self._next()
            signed = await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=new, span=SPAN))
            await self._ask(self._admin.RotateKeys, admin_pb2.RotateKeysRequest(tenant_id=new))
            if signed:
                revoke = admin_pb2.RevokeKeyRequest(tenant_id=new, key_id=signed.key_id)
                await self._ask(self._admin.RevokeKey, revoke)
            await self._ask(self._admin.Validate, admin_pb2.ValidateRequest())

    def _next(self) -> str:
        self._new += 1
        return f"cold-{self._seed}-{self._new}"
