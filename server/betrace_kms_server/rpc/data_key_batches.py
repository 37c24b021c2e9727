"""The calls of KeyManagementService about many data keys or payloads of a tenant. Each item has a status of its own."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
from betrace.kms.v1 import key_management_pb2 as pb

from betrace_kms_server.core.errors import InvalidRequest, KmsError
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.core.tenancy import Context, check_caller_context, check_tenant_id
from betrace_kms_server.data_keys.batches import (
    Item,
    KeyItem,
    SharedContext,
    Turns,
    data_key_batch,
    open_batch,
    seal_batch,
)
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.rpc.payloads import check_ciphertext, check_number_of_bytes, check_plaintext
from betrace_kms_server.rpc.status import item_status
from betrace_kms_server.rpc.wire import MAX_ITEMS
from betrace_kms_server.telemetry.observers import MessageShape, observed_as

_Context = grpc.aio.ServicerContext[Any, Any]
_OF_BATCHES = MessageShape("encryption", batch="items", results=True)
I = TypeVar("I")  # noqa: E741


class DataKeyBatchCalls:
    """GenerateDataKeys, EncryptBatch, DecryptBatch."""

    _keyring: KeyRing
    _max_payload_bytes: int

    @observed_as(_OF_BATCHES)
    async def GenerateDataKeys(
        self, request: pb.GenerateDataKeysRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.GenerateDataKeysResponse:
        """Return data keys, cached unless `fresh`. A bad item fails alone."""
        tenant_id, turns = check_tenant_id(request.tenant_id), Turns()

        def key_of(item: pb.GenerateDataKeysItem, shared: SharedContext) -> KeyItem:
            return KeyItem(check_number_of_bytes(item), shared, item.fresh)

        items = await _checked(request.items, key_of, turns)
        response = pb.GenerateDataKeysResponse()
        for outcome in await data_key_batch(self._keyring, tenant_id, items, turns, event):
            if isinstance(outcome, KmsError):
                response.results.add(status=item_status(outcome))
            else:
                response.results.add(
                    plaintext=bytes(outcome.material.raw),
                    ciphertext_blob=outcome.wrapped.blob,
                    key_id=outcome.wrapped.master_key_arn,
                )
        return response

    @observed_as(_OF_BATCHES)
    async def EncryptBatch(
        self, request: pb.EncryptBatchRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.EncryptBatchResponse:
        """Seal a batch. A bad item fails alone."""
        tenant_id, turns = check_tenant_id(request.tenant_id), Turns()

        def item_of(item: pb.EncryptBatchItem, shared: SharedContext) -> Item:
            return Item(check_plaintext(item.plaintext, self._max_payload_bytes), shared)

        items = await _checked(request.items, item_of, turns)
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

        def item_of(item: pb.DecryptBatchItem, shared: SharedContext) -> Item:
            return Item(check_ciphertext(item.ciphertext_blob), shared)

        items = await _checked(request.items, item_of, turns)
        response = pb.DecryptBatchResponse()
        for outcome in await open_batch(self._keyring, tenant_id, items, turns, event):
            if isinstance(outcome, KmsError):
                response.results.add(status=item_status(outcome))
            else:
                response.results.add(plaintext=outcome.plaintext, key_id=outcome.master_key_arn)
        return response


async def _checked(
    items: Sequence[Any], item_of: Callable[[Any, SharedContext], I], turns: Turns
) -> Sequence[I | InvalidRequest]:
    """Return the items with their contexts, each distinct one of which is checked once."""
    if not 1 <= len(items) <= MAX_ITEMS:
        raise InvalidRequest(f"items must be 1 to {MAX_ITEMS}, not {len(items)}")
    check_may_wait()  # for other calls, between its turns
    checked: list[I | InvalidRequest] = []
    contexts: dict[frozenset[tuple[str, str]], SharedContext | InvalidRequest] = {}
    for item in items:
        pairs = dict(item.encryption_context)
        key = frozenset(pairs.items())
        if (shared := contexts.get(key)) is None:
            shared = contexts[key] = _shared(pairs)
        try:
            checked.append(shared if isinstance(shared, InvalidRequest) else item_of(item, shared))
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
