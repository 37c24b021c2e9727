"""Seal and open of 1 KiB: our key ring against the official AWS Encryption SDK for Python, both warm, in one thread.

    make bench-envelope
    .venv/bin/python -m bench.envelope --rounds 40 --ops 100

Ours is what the daemon runs for a call: KeyRing.seal and KeyRing.open, with cache lookup, context check and budget.
Theirs is the SDK with its CachingCryptoMaterialsManager and LocalCryptoMaterialsCache, once with the legacy master key
provider behind it and once with the material providers library's keyring; the ratio is taken to the faster of the two.
Everybody opens the same messages, which we sealed. KMS is moto in a process of its own, and is asked only before the
measurement starts.

The machine's mood changes from second to second, so the contenders take turns within each round, in a new order each
round, and only ratios are worth comparing between runs.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from time import perf_counter_ns
from typing import Protocol

from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    CreateDefaultCryptographicMaterialsManagerInput,
)
from aws_encryption_sdk import (  # type: ignore[import-untyped]
    CachingCryptoMaterialsManager,
    LocalCryptoMaterialsCache,
    StrictAwsKmsMasterKeyProvider,
)
from aws_encryption_sdk.materials_managers.mpl.cmm import (  # type: ignore[import-untyped]
    CryptoMaterialsManagerFromMPL,
)
from betrace_kms_server.data_keys.keyring import KeyRing
from cryptography.hazmat.backends.openssl import backend

from tests.interop.sdk import TENANT, Sdk, key_ring, keyring, material_providers, sealed_context

CALLER = {"field": "email"}
PAYLOAD = os.urandom(1024)
CACHED_SECONDS = 3600.0
OURS = "betrace-kms, KeyRing"


class Contender(Protocol):
    """Seals and opens, many times in a row, and returns what each time took."""

    async def seal(self, times: int) -> list[int]:
        """Return the nanoseconds of each seal of the payload."""

    async def open(self, messages: list[bytes]) -> list[int]:
        """Return the nanoseconds of each open, and raise if a message did not hold the payload."""


class Ours:
    """The daemon's core."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def seal(self, times: int) -> list[int]:
        """See Contender."""
        took = []
        for _ in range(times):
            start = perf_counter_ns()
            await self._ring.seal(TENANT, PAYLOAD, CALLER)
            took.append(perf_counter_ns() - start)
        return took

    async def open(self, messages: list[bytes]) -> list[int]:
        """See Contender."""
        took = []
        for message in messages:
            start = perf_counter_ns()
            opened = await self._ring.open(TENANT, message, CALLER)
            took.append(perf_counter_ns() - start)
            assert opened.plaintext == PAYLOAD
        return took


class Theirs:
    """The official SDK."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk
        self._context = sealed_context(CALLER)

    async def seal(self, times: int) -> list[int]:
        """See Contender."""
        took = []
        for _ in range(times):
            start = perf_counter_ns()
            self._sdk.seal(PAYLOAD, self._context)
            took.append(perf_counter_ns() - start)
        return took

    async def open(self, messages: list[bytes]) -> list[int]:
        """See Contender. The SDK does not compare the context on a cached open, so its caller has to."""
        took = []
        for message in messages:
            start = perf_counter_ns()
            plaintext, context = self._sdk.open(message)
            accepted = context == self._context
            took.append(perf_counter_ns() - start)
            assert accepted
            assert plaintext == PAYLOAD
        return took


@contextmanager
def kms() -> Iterator[tuple[str, str]]:
    """Run moto in a process of its own, and give its endpoint and a key."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.moto_server", "0", "--create-key"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as moto:
        try:
            assert moto.stdout is not None
            assert moto.stderr is not None
            arn = moto.stdout.readline().strip()
            yield moto.stderr.readline().split()[-1], arn
        finally:
            moto.kill()


def contenders(ring: KeyRing, arn: str) -> dict[str, Contender]:
    """Return who takes part, by name."""
    manager = material_providers().create_default_cryptographic_materials_manager(
        CreateDefaultCryptographicMaterialsManagerInput(keyring=keyring(arn))
    )
    sources = {
        "aws-encryption-sdk, master key provider": {
            "master_key_provider": StrictAwsKmsMasterKeyProvider(key_ids=[arn])
        },
        "aws-encryption-sdk, keyring": {"backing_materials_manager": CryptoMaterialsManagerFromMPL(manager)},
    }
    theirs = {
        name: Theirs(
            Sdk(
                materials_manager=CachingCryptoMaterialsManager(
                    cache=LocalCryptoMaterialsCache(1000), max_age=CACHED_SECONDS, **source
                )
            )
        )
        for name, source in sources.items()
    }
    return {OURS: Ours(ring), **theirs}


async def measure(rounds: int, ops: int) -> dict[tuple[str, str], list[int]]:
    """Return the nanoseconds of every operation, by contender and operation."""
    took: dict[tuple[str, str], list[int]] = defaultdict(list)
    with kms() as (endpoint, arn):
        os.environ["AWS_ENDPOINT_URL_KMS"] = endpoint
        async with key_ring(endpoint, arn) as ring:
            messages = [(await ring.seal(TENANT, PAYLOAD, CALLER)).ciphertext for _ in range(ops)]
            order = list(contenders(ring, arn).items())
            for _, contender in order:
                await contender.seal(ops)
                await contender.open(messages)
            for _ in range(rounds):
                for name, contender in order:
                    took[name, "seal"] += await contender.seal(ops)
                    took[name, "open"] += await contender.open(messages)
                order.append(order.pop(0))
    return took


def report(took: dict[tuple[str, str], list[int]]) -> None:
    """Print medians and spreads in microseconds, then the ratios of the medians."""
    names = list(dict.fromkeys(name for name, _ in took))
    medians = {key: statistics.median(nanoseconds) / 1000 for key, nanoseconds in took.items()}
    print(f"{'microseconds an operation':42}{'seal':>8}{'p10-p90':>16}{'open':>10}{'p10-p90':>16}")
    for name in names:
        row = f"{name:42}"
        for operation, width in (("seal", 8), ("open", 10)):
            tenths = statistics.quantiles(took[name, operation], n=10)
            spread = f"{tenths[0] / 1000:.1f}-{tenths[-1] / 1000:.1f}"
            row += f"{medians[name, operation]:{width}.1f}{spread:>16}"
        print(row)
    fastest = {
        operation: min(medians[name, operation] for name in names if name != OURS) for operation in ("seal", "open")
    }
    ratios = {operation: fastest[operation] / medians[OURS, operation] for operation in fastest}
    print(f"{'ratio of medians, their faster / ours':42}{ratios['seal']:7.2f}x{'':16}{ratios['open']:9.2f}x")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40, help="how often each contender has its turn (default 40)")
    parser.add_argument("--ops", type=int, default=200, help="seals and opens in a turn (default 200)")
    arguments = parser.parse_args()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    print(
        f"1 KiB, suite 0x0478, warm, one thread, {arguments.rounds} rounds of {arguments.ops} operations\n"
        f"betrace-kms {version('betrace-kms')}, aws-encryption-sdk {version('aws-encryption-sdk')},"
        f" aws-cryptographic-material-providers {version('aws-cryptographic-material-providers')},\n"
        f"Python {sys.version.split()[0]}, cryptography {version('cryptography')}, {backend.openssl_version_text()}\n"
    )
    report(asyncio.run(measure(arguments.rounds, arguments.ops)))


if __name__ == "__main__":
    main()
