"""What a payload of 64 bytes costs the daemon, alone and in a batch of 100: `make bench-batch`.

Short rounds of Encrypt, EncryptBatch, Decrypt and DecryptBatch take turns on one daemon with the local provider. All
payloads are of one tenant; their contexts are the names of ten fields, as in records whose columns are sealed.

`CPU` is the daemon's own microseconds a payload (all threads). `times` is the median over the
rounds of how often the batch's fits into the single call's of the same round, with the interval of that median at 95 %
(bootstrap) and the quartiles of the rounds.
"""

import asyncio
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping

import click
from betrace_kms_client import AsyncKmsClient, Ciphertext, Plaintext

from bench.access import interval
from bench.rounds import cpu_nanoseconds
from tests.daemon import spawned

TENANT, IN_FLIGHT, PAYLOADS, BATCH, PAYLOAD_BYTES, FIELDS = "acme", 16, 400, 100, 64, 10


async def ways_of(client: AsyncKmsClient) -> Mapping[str, Callable[[], Awaitable[None]]]:
    """Return the four ways, each of which seals or opens PAYLOADS payloads."""
    plain = [(os.urandom(PAYLOAD_BYTES), {"field": str(number % FIELDS)}) for number in range(BATCH)]
    sealed = [
        (result.ciphertext_blob, context)
        for result, (_, context) in zip(await client.encrypt_batch(TENANT, plain), plain, strict=True)
        if isinstance(result, Ciphertext)
    ]

    async def encrypt() -> None:
        async def some() -> None:
            for number in range(PAYLOADS // IN_FLIGHT):
                await client.encrypt(TENANT, *plain[number % BATCH])

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))

    async def decrypt() -> None:
        async def some() -> None:
            for number in range(PAYLOADS // IN_FLIGHT):
                await client.decrypt(TENANT, *sealed[number % BATCH])

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))

    async def encrypt_batch() -> None:
        for _ in range(PAYLOADS // BATCH):
            results = await client.encrypt_batch(TENANT, plain)
            assert all(isinstance(result, Ciphertext) for result in results)

    async def decrypt_batch() -> None:
        for _ in range(PAYLOADS // BATCH):
            results = await client.decrypt_batch(TENANT, sealed)
            assert all(isinstance(result, Plaintext) for result in results)

    return {"Encrypt": encrypt, "EncryptBatch": encrypt_batch, "Decrypt": decrypt, "DecryptBatch": decrypt_batch}


async def measured(address: str, process_id: int, rounds: int) -> Mapping[str, list[float]]:
    """Return the daemon's microseconds a payload, for each way in each round."""
    async with AsyncKmsClient(address) as client:
        ways = await ways_of(client)
        used: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            await way()
        order = list(ways)
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                before = cpu_nanoseconds(process_id)
                await ways[name]()
                used[name].append((cpu_nanoseconds(process_id) - before) / PAYLOADS / 1000)
        return used


@click.command()
@click.option("--rounds", default=100, show_default=True)
def main(rounds: int) -> None:
    """Print what batches save."""
    with tempfile.TemporaryDirectory(prefix="kms") as folder:
        address = f"unix:{folder}/kms.sock"
        with spawned("--data-dir", f"{folder}/data", "--listen", address) as process:
            process.wait_for("serving")
            used = asyncio.run(measured(address, process.process.pid, rounds))
    click.echo(
        f"{PAYLOAD_BYTES} bytes, batches of {BATCH}, {rounds} rounds of {PAYLOADS} payloads,"
        f" Python {sys.version.split()[0]}\n"
    )
    click.echo(f"{'':14}{'CPU':>8}{'times':>8}{'95 %':>14}{'quartiles':>14}")
    for single, batch in (("Encrypt", "EncryptBatch"), ("Decrypt", "DecryptBatch")):
        ratios = [alone / mine for alone, mine in zip(used[single], used[batch], strict=True)]
        (low, high), (first, _, third) = interval(ratios), statistics.quantiles(ratios)
        click.echo(f"{single:14}{statistics.median(used[single]):8.1f}")
        click.echo(
            f"{batch:14}{statistics.median(used[batch]):8.1f}{statistics.median(ratios):8.2f}"
            f"{low:8.2f} {high:.2f}{first:8.2f} {third:.2f}"
        )


if __name__ == "__main__":
    main()
