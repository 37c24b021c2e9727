"""Sealing in the caller's process: a file of 1 GiB against a bare loop of AES-GCM, a sealer against the Encrypt call.

    make bench-envelope
    .venv/bin/python -m bench.files --rounds 5 --megabytes 1024

The bare loop reads the same file in 64 KiB pieces, seals each with pyca's AES-GCM under one key and writes it, without
a format: no header, sequence numbers, frame AAD or fsync. Both write to the same folder, in turns, in a new order each
round. The sealer seals 1 KiB payloads; the Encrypt calls go to a daemon with the local provider over a unix socket.
"""

import argparse
import os
import random
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from betrace_kms_client import KmsClient
from betrace_kms_envelope import FRAME_BYTES
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.daemon import spawned

MIB = 1024 * 1024
PAYLOAD = os.urandom(1024)


def bare(source: Path, target: Path) -> None:
    """Seal each piece of a file, and nothing else."""
    cipher, aad = AESGCM(os.urandom(32)), os.urandom(72)
    with open(source, "rb") as content, open(target, "wb") as sealed:
        number = 0
        while piece := content.read(FRAME_BYTES):
            number += 1
            sealed.write(cipher.encrypt(number.to_bytes(12, "big"), piece, aad))


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = perf_counter()
    work()
    return perf_counter() - start


def rounds(number: int, ours: Callable[[], object], theirs: Callable[[], object]) -> list[tuple[float, float]]:
    """Time both, in turns, and in a new order each round."""
    found = []
    for _ in range(number):
        if random.random() < 0.5:  # noqa: S311  # an order, no secret
            first = seconds(ours)
            found.append((first, seconds(theirs)))
        else:
            second = seconds(theirs)
            found.append((seconds(ours), second))
    return found


def shown(name: str, pairs: list[tuple[float, float]], unit: float, unit_name: str) -> str:
    """Return one line: both medians, and their ratio (more is better for ours) with its quartiles."""
    ratios = [theirs / ours for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    ours, theirs = (statistics.median(each) * unit for each in zip(*pairs, strict=True))
    return (
        f"{name}: {ours:.1f} against {theirs:.1f} {unit_name}, ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f})"
    )


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        source, sealed, bare_target = folder / "source", folder / "sealed", folder / "bare"
        with open(source, "wb") as file:
            for _ in range(options.megabytes):
                file.write(os.urandom(MIB))
        socket = f"unix:{folder}/kms.sock"
        with (
            spawned("--data-dir", str(folder / "data"), "--listen", socket) as daemon,
            KmsClient(socket) as kms,
            kms.sealer("acme") as sealer,
        ):
            daemon.wait_for("serving")
            kms.encrypt("acme", PAYLOAD)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pairs = rounds(
                options.rounds, lambda: kms.encrypt_file("acme", source, sealed), lambda: bare(source, bare_target)
            )
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(shown(f"encrypt_file of {options.megabytes} MiB against a bare loop", pairs, 1000, "ms"))
            print(f"memory of this process: {grown / 1024:.0f} MiB more than before the first file")
            times = 300

            def seal_many() -> None:
                for _ in range(times):
                    sealer.seal(PAYLOAD)

            def encrypt_many() -> None:
                for _ in range(times):
                    kms.encrypt("acme", PAYLOAD)

            pairs = rounds(options.rounds * 2, seal_many, encrypt_many)
            print(shown("sealer.seal of 1 KiB against Encrypt", pairs, 1e6 / times, "us"))


if __name__ == "__main__":
    main()
