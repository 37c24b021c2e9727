"""What the cryptography alone costs, and what callers would do without the daemon.

- `pyca`: Ed25519 and AES-256-GCM of the `cryptography` package in a bare loop.
- `aws-encryption-sdk`: the official SDK with cached keys, and beside it what our daemon runs for the same call, in one
  process without gRPC (bench/envelope.py).
- `kms`: one call of KMS for each payload, by botocore, where KMS answers after 10 ms.

CPU is that of this process, which does the work.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator

from botocore.config import Config
from botocore.session import get_session
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench import envelope
from bench.records import Case, Record, Rounds, summary
from bench.rounds import Turn, interleaved
from tests.drills.fake_kms import ARN, fake_kms

LATENCY_SECONDS = 0.01
_LOOP = 500
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def turn(work: Callable[[], object], times: int) -> Turn:
    """Do something so many times."""
    before, began = time.process_time_ns(), time.perf_counter()
    for _ in range(times):
        work()
    return Turn(times, time.process_time_ns() - before, time.perf_counter() - began)


def bare(rounds: int) -> Iterator[Record]:
    """Measure pyca in a loop: a signature of a canonical span's length, and a payload of 1 KiB."""
    key, message, payload = Ed25519PrivateKey.generate(), os.urandom(700), os.urandom(1024)
    public, signature = key.public_key(), key.sign(message)
    cipher, nonce, aad = AESGCM(os.urandom(32)), os.urandom(12), os.urandom(72)
    sealed = cipher.encrypt(nonce, payload, aad)
    work: dict[str, tuple[int, Callable[[], object]]] = {
        "Ed25519 sign": (len(message), lambda: key.sign(message)),
        "Ed25519 verify": (len(message), lambda: public.verify(signature, message)),
        "AES-GCM encrypt": (len(payload), lambda: cipher.encrypt(nonce, payload, aad)),
        "AES-GCM decrypt": (len(payload), lambda: cipher.decrypt(nonce, sealed, aad)),
    }
    found = interleaved({name: lambda call=call: turn(call, _LOOP) for name, (_, call) in work.items()}, rounds)  # type: ignore[misc]
    for name, (size, _) in work.items():
        yield summary(Case(name, transport="", concurrency=1, payload=size), "pyca", found[name])


def sdk(rounds: int) -> Iterator[Record]:
    """Measure seal and open in one process, ours and the official SDK's with each of its two sources of keys."""
    ops = 50
    took = asyncio.run(envelope.measure(rounds, ops))
    for operation in ("seal", "open"):
        case = Case(operation, transport="", concurrency=1, payload=len(envelope.PAYLOAD), variant="library")
        sides = {name: _by_round(times, ops) for (name, done), times in took.items() if done == operation}
        base = sides[envelope.OURS]
        yield summary(case, "ours", base)
        for name, found in sides.items():
            if name != envelope.OURS:
                yield summary(case, name, found, base, "ours")


def _by_round(nanoseconds: list[int], ops: int) -> Rounds:
    """Return the median of each round. The time is that of a clock on the wall: all of it is work of one thread."""
    rounds = [nanoseconds[at : at + ops] for at in range(0, len(nanoseconds), ops)]
    medians = [statistics.median(each) / 1000 for each in rounds]
    return Rounds(cpu_us=medians, per_second=[1e6 / each for each in medians])


def direct(rounds: int, calls: int = 10) -> Iterator[Record]:
    """Measure callers that ask a KMS of 10 ms for each payload."""
    case = Case("Encrypt", transport="", concurrency=1, payload=1024, variant="KMS of 10 ms")
    with fake_kms(latency=(LATENCY_SECONDS, LATENCY_SECONDS)) as endpoint:
        client = get_session().create_client(
            "kms", region_name="us-east-1", endpoint_url=endpoint, config=Config(retries={"total_max_attempts": 1})
        )
        payload = os.urandom(1024)

        def one() -> Turn:
            latencies, before, began = [], time.process_time_ns(), time.perf_counter()
            for _ in range(calls):
                start = time.perf_counter()
                client.encrypt(KeyId=ARN, Plaintext=payload, EncryptionContext={"field": "email"})
                latencies.append((time.perf_counter() - start) * 1000)
            return Turn(calls, time.process_time_ns() - before, time.perf_counter() - began, tuple(latencies))

        yield summary(case, "kms", interleaved({"kms": one}, rounds)["kms"])


def measured(rounds: int) -> Iterator[Record]:
    """Measure all of it."""
    yield from bare(rounds)
    os.environ |= _CREDENTIALS
    yield from direct(rounds)
    yield from sdk(rounds)
