"""How long it takes to rotate the keys of many tenants, with KMS in an emulator: `make bench-rotation`.

The key store is SQLite's: the emulator's DynamoDB copies its table for each transaction, and would be all that counts.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import click
import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient

from tests.daemon import spawned
from tests.faults.race import SPAN, emulator

_AT_ONCE = 16


async def measure(tenants: int) -> None:
    """Make the tenants' first keys, then rotate them all."""
    with tempfile.TemporaryDirectory(prefix="rotate") as folder, emulator() as (url, arn):
        environ = {"BETRACE_KMS_PROVIDER": "aws", "AWS_KMS_MASTER_KEY_ID": arn, "AWS_KMS_ENDPOINT": url}
        environ |= {"KMS_STORE_ALLOW_EPHEMERAL": "true"}
        data, listen = Path(folder) / "data", f"unix:{folder}/kms.sock"
        with spawned("--data-dir", str(data), "--listen", listen, environ=environ) as daemon:
            daemon.wait_for("serving")
            async with (
                AsyncKmsClient(listen) as client,
                grpc.aio.insecure_channel(f"unix:{data}/admin.sock") as channel,
            ):
                names = iter([f"tenant-{number}" for number in range(tenants)])

                async def create() -> None:
                    for name in names:
                        await client.sign_span(name, SPAN)

                await asyncio.gather(*(create() for _ in range(_AT_ONCE)))
                began = time.perf_counter()
                answer = await KmsAdminServiceStub(channel).RotateKeys(admin_pb2.RotateKeysRequest(all=True))
                took = time.perf_counter() - began
    click.echo(f"{answer.rotated:,} of {tenants:,} tenants rotated in {took:.1f} s, {answer.failed} failed")


@click.command()
@click.option("--tenants", default=1000, show_default=True)
def main(tenants: int) -> None:
    """Print how long the rotation of many tenants takes."""
    asyncio.run(measure(tenants))


if __name__ == "__main__":
    main()
