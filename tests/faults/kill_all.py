"""A thousand kill -9 over every operation that writes: `make drill-kill`."""

import asyncio
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import boto3  # type: ignore[import-untyped]
import click

from tests.contract.postgres_peer import new_place
from tests.faults.kill import BRANCH_KEYS, Drill, Report
from tests.faults.kill_files import Kills, aws_environ, completed
from tests.faults.race import emulator
from tests.postgres_server import PostgresServer, postgres_server

PART = 50
"""Kills of one key store before everything is checked, and a new one is taken."""
SHARES = {
    "sqlite": 300,
    "sqlite-branch-keys": 100,
    "postgresql": 50,
    "postgresql-branch-keys": 50,
    "dynamodb": 50,
    "dynamodb-branch-keys": 50,
    "first start": 150,
    "export, import": 100,
    "init": 50,
    "re-wrapping": 100,
}
"""Of 1,000."""
ON_DYNAMODB = ("dynamodb", "dynamodb-branch-keys")
ON_POSTGRESQL = ("postgresql", "postgresql-branch-keys")


def described(name: str, report: Report) -> str:
    """Return the figures of one kind of kill as a line."""
    text = f"{name}: {report.kills} kills, {len(report.lost)} lost"
    if report.restarts:
        slow = sum(seconds > 2 for seconds in report.restarts)
        ordered = sorted(report.restarts)
        p90, p99 = (ordered[int(len(ordered) * share)] for share in (0.9, 0.99))
        text += (
            f"; to SERVING {statistics.median(ordered):.2f} s (median), {p90:.2f} s (p90), {p99:.2f} s (p99),"
            f" {ordered[-1]:.2f} s (longest), {slow} of {len(ordered)} over 2 s"
        )
    text += "".join(f"; {number:,} {what}" for what, number in sorted(report.ledger.counts.items()))
    return text + (f"; {len(report.ledger.sealed):,} messages in all" if report.ledger.sealed else "")


def drills(folder: Path, kills: dict[str, int]) -> Iterator[tuple[str, Report]]:
    """Kill each kind so many times; yield what came of it, part by part."""
    files = Kills(folder, seed=20_261_126)
    if kills["first start"]:
        yield "first start", files.first_starts(kills["first start"])
    for name in ("sqlite", "sqlite-branch-keys"):
        yield from _daemon_kills(folder, name, kills[name])
    if kills["export, import"]:
        yield "export, import", files.exports_and_imports(kills["export, import"])
    if not sum(kills[name] for name in (*ON_DYNAMODB, *ON_POSTGRESQL, "init", "re-wrapping")):
        return
    with emulator() as (url, arn):
        for name in ON_DYNAMODB:
            yield from _daemon_kills(folder, name, kills[name], url, arn)
        if sum(kills[name] for name in ON_POSTGRESQL):
            with postgres_server() as server:
                for name in ON_POSTGRESQL:
                    yield from _daemon_kills(folder, name, kills[name], url, arn, server)
        if kills["init"]:
            yield "init", files.table_creations(kills["init"], url)
        if kills["re-wrapping"]:
            kms = boto3.client("kms", region_name="us-east-1", endpoint_url=url)
            other = kms.create_key()["KeyMetadata"]["Arn"]
            yield "re-wrapping", files.rewrappings(kills["re-wrapping"], url, (arn, other))


def _daemon_kills(
    folder: Path, name: str, kills: int, url: str = "", arn: str = "", server: PostgresServer | None = None
) -> Iterator[tuple[str, Report]]:
    for first in range(0, kills, PART):
        part = folder / f"{name}-{first}"
        part.mkdir()
        environ = dict(BRANCH_KEYS) if name.endswith("branch-keys") else {}
        if server is not None:
            environ |= aws_environ(url, arn) | asyncio.run(new_place(server)).settings
        elif url:
            table = f"keys-{token_hex(6)}"
            store = {"KMS_STORE_TABLE": table, "KMS_STORE_ENDPOINT": url, "KMS_STORE_REGION": "us-east-1"}
            store["KMS_BRANCH_KEYS_TABLE"] = f"{table}-branch"
            if problem := completed("keystore", "init", environ=store):
                raise SystemExit(problem)
            environ |= aws_environ(url, arn) | store | {"KMS_STORE": "dynamodb"}
        drill = Drill(part, seed=first, environ=environ)
        drill.run(min(PART, kills - first))
        yield name, drill.report


@click.command()
@click.option("--kills", default=1000, show_default=True, help="Kills in all.")
@click.option("--kind", type=click.Choice(list(SHARES)), help="One kind of kill alone.")
def main(kills: int, kind: str | None) -> None:
    """Kill again and again, and print what came of it."""
    shares = {name: kills * share // 1000 for name, share in SHARES.items()}
    if kind:
        shares = dict.fromkeys(SHARES, 0) | {kind: kills}
    total = dict[str, Report]()
    with tempfile.TemporaryDirectory(prefix="kill") as folder:
        for name, report in drills(Path(folder), shares):
            click.echo(described(name, report), err=True)
            so_far = total.setdefault(name, Report())
            so_far.kills += report.kills
            so_far.lost += report.lost
            so_far.restarts += report.restarts
            so_far.ledger.counts += report.ledger.counts
            so_far.ledger.sealed += report.ledger.sealed
    lost = [line for report in total.values() for line in report.lost]
    with suppress(OSError):
        click.echo(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for name, report in total.items():
        click.echo(described(name, report))
    for line in lost:
        click.echo(f"lost: {line}")
    click.echo(f"{sum(report.kills for report in total.values()):,} kills, {len(lost)} lost")
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
