"""The calls of KeyManagementService about MACs: blind indexes."""

from typing import Any

import grpc
from betrace.kms.v1 import key_management_pb2 as pb

from betrace_kms_server.core.errors import InvalidRequest, KmsError
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.core.tenancy import check_tenant_id
from betrace_kms_server.data_keys.batches import Turns
from betrace_kms_server.data_keys.mac_keys import purpose_of, purpose_of_mac
from betrace_kms_server.data_keys.macs import MacItem, Macs
from betrace_kms_server.rpc.payloads import check_message
from betrace_kms_server.rpc.status import item_status
from betrace_kms_server.rpc.wire import MAX_ITEMS
from betrace_kms_server.telemetry.observers import MessageShape, observed_as

_Context = grpc.aio.ServicerContext[Any, Any]
_OF_MACS = MessageShape("branch", response_key_id=True)
_OF_BATCHES = MessageShape("branch", batch="items", results=True)


class MacCalls:
    """GenerateMac, GenerateMacBatch, VerifyMac."""

    _macs: Macs
    _max_payload_bytes: int

    @observed_as(_OF_MACS)
    async def GenerateMac(
        self, request: pb.GenerateMacRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.GenerateMacResponse:
        """Compute the MAC of a message."""
        tenant_id = check_tenant_id(request.tenant_id)
        made = await self._macs.generate(tenant_id, self._item(request), event)
        return pb.GenerateMacResponse(mac=made.mac, key_id=made.master_key_arn)

    @observed_as(_OF_BATCHES)
    async def GenerateMacBatch(
        self, request: pb.GenerateMacBatchRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.GenerateMacBatchResponse:
        """Compute the MACs of a batch. A bad item fails alone."""
        tenant_id, turns = check_tenant_id(request.tenant_id), Turns()
        if not 1 <= len(request.items) <= MAX_ITEMS:
            raise InvalidRequest(f"items must be 1 to {MAX_ITEMS}, not {len(request.items)}")
        check_may_wait()  # for other calls, between its turns
        items = [self._item_or_refusal(item) for item in request.items]
        response = pb.GenerateMacBatchResponse()
        for outcome in await self._macs.generate_batch(tenant_id, items, turns, event):
            if isinstance(outcome, KmsError):
                response.results.add(status=item_status(outcome))
            else:
                response.results.add(mac=outcome.mac, key_id=outcome.master_key_arn)
        return response

    @observed_as(_OF_MACS)
    async def VerifyMac(
        self, request: pb.VerifyMacRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.VerifyMacResponse:
        """Tell whether a MAC is a message's."""
        tenant_id = check_tenant_id(request.tenant_id)
        purpose = purpose_of_mac(request.purpose, request.bits, request.mac)
        item = MacItem(purpose, check_message(request.message, self._max_payload_bytes))
        valid, key_id = await self._macs.verify(tenant_id, item, request.mac, event)
        return pb.VerifyMacResponse(mac_valid=valid, key_id=key_id)

    def _item(self, asked: pb.GenerateMacRequest | pb.GenerateMacBatchItem) -> MacItem:
        return MacItem(purpose_of(asked.purpose, asked.bits), check_message(asked.message, self._max_payload_bytes))

    def _item_or_refusal(self, asked: pb.GenerateMacBatchItem) -> MacItem | InvalidRequest:
        try:
            return self._item(asked)
        except InvalidRequest as refusal:
            return refusal
