"""Which measurements `make bench` makes: one base point for each RPC, and one dimension varied at a time.

The full product of RPCs, concurrency, transports, sizes, batches and tenants would take days and say no more: what a
dimension does to one call that signs and one that encrypts holds for the others.
"""

from collections.abc import Sequence
from dataclasses import replace

from bench.records import Case
from bench.workloads import KINDS

AUDIT, GUARDED, PYTHON = "audit", "audit, token", "grpc.aio client"
KIB, MIB = 1024, 1024 * 1024
LARGEST_BYTES = 4 * MIB
LARGE_IN_FLIGHT = 4
"""Of more large requests on one connection, a daemon refuses those that are slow to arrive."""
TENANTS = (1, 100, 1_000, 10_000)


def base(row: str) -> Case:
    """Return the base point of an RPC: TCP, 16 calls in flight, one tenant."""
    kind = KINDS[row]
    return Case(row, payload=kind.payload, batch=kind.batch)


def wire() -> Sequence[Case]:
    """Return the cases that h2load measures, in the order of the table."""
    single, sealing = ("SignSpan", "Encrypt"), ("Encrypt", "Decrypt")
    cases = [
        *(base(row) for row in KINDS),
        *(replace(base(row), concurrency=count) for row in single for count in (1, 64)),
        *(replace(base(row), transport="unix") for row in ("SignSpan", "Encrypt", "Decrypt")),
        *(replace(base(row), payload=size) for row in sealing for size in (64, 16 * KIB)),
        *(
            replace(base(row), payload=size, concurrency=LARGE_IN_FLIGHT)
            for row in sealing
            for size in (256 * KIB, MIB, LARGEST_BYTES)
        ),
        *(replace(base(row), batch=count) for row in ("SignSpans", "SignSpans, proofs") for count in (1, 10)),
        *(replace(base(row), batch=count) for row in ("EncryptBatch", "DecryptBatch") for count in (1, 10)),
        *(
            replace(base(row), batch=1000, concurrency=LARGE_IN_FLIGHT)
            for row in ("SignSpans", "SignSpans, proofs", "EncryptBatch", "DecryptBatch")
        ),
        *(
            replace(base(row), variant=variant)
            for row in ("SignSpan", "Encrypt", "Decrypt")
            for variant in (AUDIT, GUARDED)
        ),
        *(replace(base(row), variant=AUDIT) for row in ("VerifySpan", "GenerateDataKey", "SignSpans", "EncryptBatch")),
    ]
    return list(dict.fromkeys(cases))


def tenants(counts: Sequence[int] = TENANTS) -> Sequence[Case]:
    """Return the cases that a grpc.aio client makes: calls of many tenants in turn, and some of one to compare with."""
    return [
        *(replace(base(row), variant=PYTHON) for row in ("Decrypt", "VerifySpan", "GenerateDataKey")),
        *(replace(base(row), tenants=count, variant=PYTHON) for row in ("SignSpan", "Encrypt") for count in counts),
    ]


def quick() -> Sequence[Case]:
    """Return one wire case of each sort, for a run that shows that all of it works."""
    return [
        base("SignSpan"),
        replace(base("EncryptBatch"), transport="unix", concurrency=LARGE_IN_FLIGHT),
        replace(base("Encrypt"), payload=MIB, concurrency=1),
        replace(base("Decrypt"), variant=GUARDED),
    ]
