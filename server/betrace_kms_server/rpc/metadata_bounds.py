"""Refuses calls with large metadata, and frees it soon.

gRPC keeps to its own limit of 16 KiB only once the other end has acknowledged the server's SETTINGS. To a caller that
never does, it grants 16 MiB a call. It also leaves the metadata of each call in a reference cycle, which waits for the
garbage collector: that counts objects and not bytes.
"""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

MOST_PAIRS = 512
"""16 KiB hold fewer: gRPC counts 32 bytes for each, and its name and value (RFC 9113, section 6.5.2)."""
MOST_BYTES_OF_A_VALUE = 16 * 1024

_SOON_SECONDS = 0.02
_YOUNG = 1
"""Generations 0 and 1 of the collector: what is older has survived the call. To collect it all takes tens of ms."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def is_large(metadata: Sequence[tuple[str, str | bytes]]) -> bool:
    """Return whether metadata has more pairs, or a larger value, than a client that keeps to gRPC's limit can send."""
    if len(metadata) > MOST_PAIRS:
        return True
    for _, value in metadata:  # each call pays for it: any() costs twice as much
        if len(value) > MOST_BYTES_OF_A_VALUE:
            return True
    return False


class LargeMetadata:
    """Refuses the calls that `is_large` finds."""

    def __init__(self) -> None:
        self._collecting = False

    def refuse(self) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return a handler that refuses the call, and let the call's metadata be freed when it has ended."""
        if not self._collecting:
            self._collecting = True
            asyncio.get_running_loop().call_later(_SOON_SECONDS, self._collect)
        return _REFUSING

    def _collect(self) -> None:
        self._collecting = False
        gc.collect(_YOUNG)


async def _refuse(_: Any, context: _Context) -> None:
    await context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"metadata of more than {MOST_PAIRS} pairs, or a value of more than {MOST_BYTES_OF_A_VALUE} bytes: send less",
    )


_REFUSING: "grpc.RpcMethodHandler[Any, Any]" = grpc.stream_stream_rpc_method_handler(_refuse)
