"""Races of daemons that make, rotate and seal under one tenant's branch key at once.

`make drill-race` runs two thousand on DynamoDB and five hundred on SQLite, `test_race.py` a few. On DynamoDB four
daemons share one table; on SQLite, which is for one daemon, four clients race in it.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import boto3  # type: ignore[import-untyped]
import click
import grpc
from betrace.kms.v1 import admin_pb2
from betrace_kms_client import ItemRefusal, KmsClientError, Plaintext
from betrace_kms_envelope import Message
from betrace_kms_server.data_keys.hierarchy import version_of
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE

from tests.contract.postgres_peer import Place, new_place
from tests.faults.kill import BRANCH_KEYS as BRANCH_KEY_MODE
from tests.faults.race import (
    AT_ONCE,
    DAEMONS,
    REGION,
    TENANTS_A_TABLE,
    Pod,
    emulator,
    on_postgresql,
    pods,
    started,
)
from tests.postgres_server import PostgresServer, postgres_server

PAYLOAD = b"raced"
TRIES = 10
Sealed = tuple[bytes, dict[str, str]]
"""A message and its context."""
Types = Callable[[str], list[str]]
"""Returns the `type` of each row of a tenant's branch key, as the store has them."""


@dataclass
class Report:
    """What came of the races."""

    tenants: int = 0
    messages: int = 0
    rotations: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    divergences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tenants:,} branch keys raced for: {self.messages:,} messages, {self.rotations:,} rotations,"
            f" {len(self.divergences)} divergences; failed calls: {dict(self.refused)}"
        )


async def race(tenant: str, pods: Sequence[Pod], types: Types, report: Report) -> None:
    """Make a tenant's branch key, then rotate it and seal, in all daemons at once; all must open everything."""
    unanswered = 0  # rotations that failed for the caller, and may have landed

    async def sealed(pod: Pod, record: int) -> Sealed | None:
        context = {"record": f"{record}"}
        try:
            return (await pod.client.encrypt(tenant, PAYLOAD, context)).ciphertext_blob, context
        except KmsClientError as error:
            report.refused[f"Encrypt {type(error).__name__}: {str(error)[:80]}"] += 1
            return None

    async def rotated(pod: Pod) -> int:
        nonlocal unanswered
        try:
            answer = await pod.admin.RotateKeys(admin_pb2.RotateKeysRequest(tenant_id=tenant), timeout=30)
        except grpc.aio.AioRpcError as error:
            unanswered += 1
            report.refused[f"RotateKeys {error.code().name}: {str(error.details())[:80]}"] += 1
            return 0
        return int(answer.rotated)

    def seals(start: int) -> list[asyncio.Future[Sealed | None]]:
        return [asyncio.ensure_future(sealed(pod, start + number)) for number, pod in enumerate(pods)]

    created = [each for each in await asyncio.gather(*seals(0)) if each]
    if len({version_in(message) for message, _ in created}) > 1:
        report.divergences.append(f"{tenant}: daemons disagree on the first branch key")
    turning = [asyncio.ensure_future(rotated(pod)) for pod in pods]
    later = await asyncio.gather(*seals(10), *seals(20))
    rotations = sum(await asyncio.gather(*turning))
    messages = [*created, *(each for each in later if each)]

    for pod in pods:
        for opened in await opened_by(pod, tenant, messages, report):
            if not isinstance(opened, Plaintext) or opened.plaintext != PAYLOAD:
                report.divergences.append(f"{tenant}: a message does not open everywhere: {opened}")
    found = Counter(await asyncio.to_thread(types, tenant))
    versions = {type_ for type_ in found if type_.startswith("branch:version:")}
    if {"branch:ACTIVE", "beacon:ACTIVE"} != found.keys() - versions or set(found.values()) != {1}:
        report.divergences.append(f"{tenant}: the rows are {dict(found)}")
    if not rotations <= len(versions) - 1 <= rotations + unanswered:
        report.divergences.append(f"{tenant}: {rotations} rotations made {len(versions)} versions")
    if missing := {f"branch:version:{version_in(message)}" for message, _ in messages} - versions:
        report.divergences.append(f"{tenant}: versions that sealed have no row: {missing}")
    report.tenants += 1
    report.rotations += rotations
    report.messages += len(messages)


async def opened_by(
    pod: Pod, tenant: str, messages: Sequence[Sealed], report: Report
) -> Sequence[Plaintext | ItemRefusal]:
    """Return what a daemon opens, tried again for as long as the emulator is too busy to answer it."""
    opened = list[Plaintext | ItemRefusal]()
    for _ in range(TRIES):
        opened = await pod.client.decrypt_batch(tenant, messages)
        busy = [each for each in opened if isinstance(each, ItemRefusal) and each.status == "UNAVAILABLE"]
        if not busy:
            break
        report.refused[f"DecryptBatch: {busy[0].message[:80]}"] += 1
    return opened


def version_in(message: bytes) -> UUID | None:
    """Return the version of the branch key in a message."""
    (encrypted,) = Message.parse(message).encrypted_data_keys
    return version_of(encrypted)


async def race_all(tenants: Sequence[str], pods: Sequence[Pod], types: Types, report: Report) -> None:
    """Race for each tenant, several at once."""
    names = iter(tenants)

    async def work(names: Iterator[str] = names) -> None:
        for name in names:
            await race(name, pods, types, report)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def dynamodb_races(tenants: int, *, progress: bool = False) -> Report:
    """Race four daemons on one table. A new one is taken for every hundred tenants: moto slows down with its size."""
    report, began = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="race") as folder, emulator() as (url, arn):
        client = boto3.client("dynamodb", region_name=REGION, endpoint_url=url)
        for first in range(0, tenants, TENANTS_A_TABLE):
            table = f"keys-{first}"
            branch = f"{table}-branch"
            for created in (
                create_table(table, region=REGION, endpoint=url),
                create_table(branch, region=REGION, endpoint=url, kind=BRANCH_KEYS),
            ):
                async for _ in created:
                    pass

            def types(tenant: str, branch: str = branch) -> list[str]:
                page = client.query(
                    TableName=branch,
                    KeyConditionExpression="#id = :id",
                    ExpressionAttributeNames={"#id": "branch-key-id"},
                    ExpressionAttributeValues={":id": {"S": tenant}},
                )
                return [item["type"]["S"] for item in page["Items"]]

            others = BRANCH_KEY_MODE | {"KMS_BRANCH_KEYS_TABLE": branch}
            async with pods(Path(folder), url, arn, table, others) as running:
                names = [f"tenant-{number}" for number in range(first, min(first + TENANTS_A_TABLE, tenants))]
                await race_all(names, running, types, report)
            if progress:
                click.echo("\n".join([f"{time.monotonic() - began:6.0f} s  {report}", *report.divergences]), err=True)
    return report


async def postgresql_races(tenants: int, server: PostgresServer, *, progress: bool = False) -> Report:
    """Race four daemons on databases of PostgreSQL."""
    report, began = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="race") as folder, emulator() as (url, arn):
        for first in range(0, tenants, TENANTS_A_TABLE):
            place = await new_place(server)

            def types(tenant: str, place: Place = place) -> list[str]:
                return place.read("SELECT type FROM betrace_kms.branch_keys WHERE branch_key_id = %s", tenant)

            others = BRANCH_KEY_MODE | on_postgresql(place)
            async with pods(Path(folder), url, arn, f"keys-{first}", others) as running:
                names = [f"tenant-{number}" for number in range(first, min(first + TENANTS_A_TABLE, tenants))]
                await race_all(names, running, types, report)
            if progress:
                click.echo("\n".join([f"{time.monotonic() - began:6.0f} s  {report}", *report.divergences]), err=True)
    return report


async def sqlite_races(tenants: int) -> Report:
    """Race four clients in one daemon on SQLite, with a local master key."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="race") as folder:

        def types(tenant: str) -> list[str]:
            with closing(sqlite3.connect(Path(folder, "data-0", DATABASE_FILE))) as database:
                return [
                    type_
                    for (type_,) in database.execute("SELECT type FROM branch_keys WHERE branch_key_id = ?", [tenant])
                ]

        async with started(Path(folder), "data", BRANCH_KEY_MODE, 1) as (pod,):
            await race_all([f"tenant-{number}" for number in range(tenants)], [pod] * DAEMONS, types, report)
    return report


@click.command()
@click.option("--tenants", default=2000, show_default=True)
@click.option("--store", type=click.Choice(["dynamodb", "postgresql", "sqlite"]), default="dynamodb", show_default=True)
def main(tenants: int, store: str) -> None:
    """Race for branch keys, and print what came of it."""
    if store == "postgresql":
        with postgres_server() as server:
            report = asyncio.run(postgresql_races(tenants, server, progress=True))
    else:
        report = asyncio.run(sqlite_races(tenants) if store == "sqlite" else dynamodb_races(tenants, progress=True))
    click.echo(f"{store}: {report}")
    for divergence in report.divergences:
        click.echo(divergence)
    raise SystemExit(bool(report.divergences))


if __name__ == "__main__":
    main()
