"""Races of several daemons on one key store: they create, sign and rotate the same tenants at once.

`make drill-race` runs two thousand, `test_race.py` a few. Each daemon is a process of its own, and moto another one. A
new table, or database, is taken for every hundred tenants, because moto slows down with its size.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, KmsClientError
from betrace_kms_evidence import SpanVerifier, read_jwks
from betrace_kms_server.stores.dynamodb.creation import create_table

from tests.contract.postgres_peer import Place, new_place
from tests.daemon import spawned
from tests.postgres_server import PostgresServer, postgres_server

REGION, DAEMONS, TENANTS_A_TABLE, AT_ONCE = "us-east-1", 4, 100, 4
SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class Report:
    """What came of the races."""

    tenants: int = 0
    signatures: int = 0
    rotations: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    divergences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tenants:,} tenants raced by {DAEMONS} daemons: {self.signatures:,} signatures, all of which verify,"
            f" {self.rotations:,} rotations, {len(self.divergences)} divergences; failed calls: {dict(self.refused)}"
        )


@dataclass
class Pod:
    """The clients of one daemon."""

    client: AsyncKmsClient
    admin: Any


@contextmanager
def emulator() -> Iterator[tuple[str, str]]:
    """Run moto as a process of its own; yields its URL and the ARN of a KMS key."""
    with subprocess.Popen(
        [sys.executable, "tests/moto_server.py", "0", "--create-key"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            arn = process.stdout.readline().strip()
            url = process.stderr.readline().split()[-1]
            with patch.dict(os.environ, CREDENTIALS):
                yield url, arn
        finally:
            process.kill()


@asynccontextmanager
async def pods(
    folder: Path, url: str, arn: str, table: str, others: Mapping[str, str] | None = None
) -> AsyncIterator[Sequence[Pod]]:
    """Run the daemons on one table, with other settings as environment variables."""
    environ = {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": arn,
        "AWS_KMS_ENDPOINT": url,
        "KMS_STORE": "dynamodb",
        "KMS_STORE_TABLE": table,
        "KMS_STORE_ENDPOINT": url,
        "KMS_CACHE_VERSION_CHECK_SECONDS": "1",
        **(others or {}),
    }
    async with started(folder, table, environ, DAEMONS) as found:
        yield found


@asynccontextmanager
async def started(folder: Path, name: str, environ: Mapping[str, str], daemons: int) -> AsyncIterator[Sequence[Pod]]:
    """Run daemons, each with a data directory of its own."""
    async with AsyncExitStack() as resources:
        with ExitStack() as processes:
            found = []
            for number in range(daemons):
                data = folder / f"{name}-{number}"
                listen = f"unix:{data}.sock"
                daemon = processes.enter_context(spawned("--data-dir", str(data), "--listen", listen, environ=environ))
                found.append((daemon, listen, data))
            for daemon, _, _ in found:
                await asyncio.to_thread(daemon.wait_for, "serving", 60)
            yield [
                Pod(
                    await resources.enter_async_context(AsyncKmsClient(listen, timeout=30)),
                    KmsAdminServiceStub(
                        await resources.enter_async_context(grpc.aio.insecure_channel(f"unix:{data}/admin.sock"))
                    ),
                )
                for _, listen, data in found
            ]
            await resources.aclose()


async def race(tenant: str, pods: Sequence[Pod], report: Report) -> None:
    """Create a tenant's key, then rotate it and sign, in all daemons at once, and compare what they say."""

    async def signed(pod: Pod) -> Any:
        try:
            return await pod.client.sign_span(tenant, SPAN)
        except KmsClientError as error:
            report.refused[f"SignSpan {type(error).__name__}: {str(error)[:80]}"] += 1
            return None

    unanswered = 0  # rotations that failed for the caller, and may have landed

    async def rotated(pod: Pod) -> int:
        nonlocal unanswered
        try:
            answer = await pod.admin.RotateKeys(admin_pb2.RotateKeysRequest(tenant_id=tenant), timeout=30)
        except grpc.aio.AioRpcError as error:
            unanswered += 1
            report.refused[f"RotateKeys {error.code().name}: {str(error.details())[:80]}"] += 1
            return 0
        return int(answer.rotated)

    created = [each for each in await asyncio.gather(*map(signed, pods)) if each]
    if len({each.key_id for each in created}) != 1:
        report.divergences.append(f"{tenant}: daemons disagree on the first key")
    later = await asyncio.gather(*map(rotated, pods), *map(signed, pods), *map(signed, pods))
    rotations = sum(later[:DAEMONS])
    signatures = [*created, *(each for each in later[DAEMONS:] if each)]

    views = await asyncio.gather(*(pod.client.get_public_keys(tenant) for pod in pods))
    first, *others = ([(key.key_id, key.status) for key in view.keys] for view in views)
    if any(sorted(other) != sorted(first) for other in others):
        report.divergences.append(f"{tenant}: daemons list different keys")
    statuses = Counter(status for _, status in first)
    if statuses["ACTIVE"] != 1 or not rotations <= statuses["ROTATED"] == len(first) - 1 <= rotations + unanswered:
        report.divergences.append(f"{tenant}: {rotations} rotations made {dict(statuses)}")
    verifier = SpanVerifier(read_jwks(views[0].jwks))
    for each in signatures:
        if verifier.verify(SPAN, each.signature, each.key_id, None) != "VALID":
            report.divergences.append(f"{tenant}: a signature of {each.key_id} does not verify")
    report.tenants += 1
    report.rotations += rotations
    report.signatures += len(signatures)


async def races(tenants: int, *, server: PostgresServer | None = None, progress: bool = False) -> Report:
    """Race a number of tenants, on tables of an emulator or, if there is a `server`, on databases of PostgreSQL."""
    report, began = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="race") as folder, emulator() as (url, arn):
        for first in range(0, tenants, TENANTS_A_TABLE):
            table = f"keys-{first}"
            if server is None:
                async for _ in create_table(table, region=REGION, endpoint=url):
                    pass
                store = dict[str, str]()
            else:
                store = on_postgresql(await new_place(server))
            async with pods(Path(folder), url, arn, table, store) as running:
                names = iter([f"tenant-{number}" for number in range(first, min(first + TENANTS_A_TABLE, tenants))])

                async def work(running: Sequence[Pod] = running, names: Iterator[str] = names) -> None:
                    for name in names:
                        await race(name, running, report)

                await asyncio.gather(*(work() for _ in range(AT_ONCE)))
            if progress:
                click.echo(f"{time.monotonic() - began:6.0f} s  {report}", err=True)
    return report


def on_postgresql(place: Place) -> dict[str, str]:
    """Return the settings of a daemon on a database, in place of those for DynamoDB."""
    return {"KMS_STORE_TABLE": "", "KMS_STORE_ENDPOINT": "", "KMS_BRANCH_KEYS_TABLE": "", **place.settings}


@click.command()
@click.option("--tenants", default=2000, show_default=True)
@click.option("--store", type=click.Choice(["dynamodb", "postgresql"]), default="dynamodb", show_default=True)
def main(tenants: int, store: str) -> None:
    """Race daemons on one key store, and print what came of it."""
    with postgres_server() if store == "postgresql" else nullcontext() as server:
        report = asyncio.run(races(tenants, server=server, progress=True))
    click.echo(f"{store}: {report}")
    for divergence in report.divergences:
        click.echo(divergence)
    raise SystemExit(bool(report.divergences))


if __name__ == "__main__":
    main()
