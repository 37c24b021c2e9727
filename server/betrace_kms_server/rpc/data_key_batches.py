"""The calls of KeyManagementService about many payloads of one tenant. Each item has a status of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from betrace.kms.v1 import key_management_pb2 as pb

from betrace_kms_server.core.errors import InvalidRequest, KmsError
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.core.tenancy import Context, check_caller_context, check_tenant_id
from betrace_kms_server.data_keys.batches import Item, SharedContext, Turns, open_batch, seal_batch
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.rpc.payloads import check_ciphertext, check_plaintext
from betrace_kms_server.rpc.status import item_status
from betrace_kms_server.rpc.wire import MAX_ITEMS
from betrace_kms_server.telemetry.observers import MessageShape, observed_as

_Context = grpc.aio.ServicerContext[Any, Any]
_OF_BATCHES = MessageShape("encryption", batch="items", results=True)


class DataKeyBatchCalls:
    """EncryptBatch, DecryptBatch."""

    _keyring: KeyRing
    _max_payload_bytes: int

    @observed_as(_OF_BATCHES)
    async def EncryptBatch(
        self, request: pb.EncryptBatchRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.EncryptBatchResponse:
        """Seal a batch. A bad item fails alone."""
        tenant_id, turns = check_tenant_id(request.tenant_id), Turns()

        def payload_of(item: pb.EncryptBatchItem) -> bytes:
            return check_plaintext(item.plaintext, self._max_payload_bytes)

        items = await _checked(request.items, payload_of, turns)
        response = pb.EncryptBatchResponse()
        for outcome in await seal_batch(self._keyring, tenant_id, items, turns, event):
            if isinstance(outcome, KmsError):
                response.results.add(status=item_status(outcome))
            else:
                response.results.add(ciphertext_blob=outcome.ciphertext, key_id=outcome.master_key_arn)
        return response

    @observed_as(_OF_BATCHES)
    async def DecryptBatch(
        self, request: pb.DecryptBatchRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.DecryptBatchResponse:
        """Open a batch. A bad item fails alone."""
        tenant_id, turns = check_tenant_id(request.tenant_id), Turns()

        def payload_of(item: pb.DecryptBatchItem) -> bytes:
            return check_ciphertext(item.ciphertext_blob)

        items = await _checked(request.items, payload_of, turns)
        response = pb.DecryptBatchResponse()
        for outcome in await open_batch(self._keyring, tenant_id, items, turns, event):
            if isinstance(outcome, KmsError):
                response.results.add(status=item_status(outcome))
            else:
                response.results.add(plaintext=outcome.plaintext, key_id=outcome.master_key_arn)
        return response


async def _checked(
    items: Sequence[Any], payload_of: Callable[[Any], bytes], turns: Turns
) -> Sequence[Item | InvalidRequest]:
    """Return the items with their contexts, each distinct one of which is checked once."""
    if not 1 <= len(items) <= MAX_ITEMS:
        raise InvalidRequest(f"items must be 1 to {MAX_ITEMS}, not {len(items)}")
    check_may_wait()  # for other calls, between its turns
    checked: list[Item | InvalidRequest] = []
    contexts: dict[frozenset[tuple[str, str]], SharedContext | InvalidRequest] = {}
    for item in items:
        pairs = dict(item.encryption_context)
        key = frozenset(pairs.items())
        if (shared := contexts.get(key)) is None:
            shared = contexts[key] = _shared(pairs)
        try:
            checked.append(shared if isinstance(shared, InvalidRequest) else Item(payload_of(item), shared))
        except InvalidRequest as refusal:
            checked.append(refusal)
        if turns.over:
            await turns.next()
    return checked


def _shared(pairs: Context) -> SharedContext | InvalidRequest:
    try:
        return SharedContext(check_caller_context(pairs))
    except InvalidRequest as refusal:
        return refusal
