"""The rows of `make bench-peer`: what both sides are asked to do, with the same spans and payloads.

Each row has several inputs, which take turns from round to round.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from betrace.kms.v1.span_pb2 import ComplianceSpan

from bench.sign import span

TENANT, BATCH, PAYLOAD_BYTES, ITEM_BYTES = "acme", 100, 1024, 64
PROOFS = "SignSpans, proofs"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of call: how many items it has, and how many bytes each carries (0: a span)."""

    name: str
    batch: int = 1
    payload: int = 0


ROWS = (
    Row("SignSpan"),
    Row("VerifySpan"),
    Row("Encrypt", payload=PAYLOAD_BYTES),
    Row("Decrypt", payload=PAYLOAD_BYTES),
    Row("GenerateDataKey, cached"),
    Row("GenerateDataKey, fresh"),
    Row("SignSpans", BATCH),
    Row(PROOFS, BATCH),
    Row("VerifySpans", BATCH),
    Row("VerifySpans, proofs", BATCH),
    Row("EncryptBatch", BATCH, ITEM_BYTES),
    Row("DecryptBatch", BATCH, ITEM_BYTES),
)


@dataclass(frozen=True, slots=True)
class Input:
    """The spans and payloads of one turn; calls of one item take the first."""

    spans: Sequence[ComplianceSpan]
    payload: bytes
    items: Sequence[bytes]


def inputs(count: int) -> list[Input]:
    """Return inputs that differ in every span and payload, and in nothing else."""
    return [
        Input(
            [span(number * BATCH + item) for item in range(BATCH)],
            os.urandom(PAYLOAD_BYTES),
            [os.urandom(ITEM_BYTES) for _ in range(BATCH)],
        )
        for number in range(count)
    ]
