"""The primary region's endpoint dies under load: warm tenants do not notice, cold ones are served by the replica."""

import asyncio
import re
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient

from tests.aws_proxy import aws_proxy
from tests.daemon import spawned
from tests.integration.test_aws_daemon import aws

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
REPLICA_REGION = "eu-west-1"


async def test_the_primary_region_dies_under_load(tmp_path: Path, moto: "MotoServer") -> None:
    """0 failed calls of warm tenants, cold tenants served, back on the primary, and all messages open there."""
    primary = moto.create_key(multi_region=True)
    replica = moto.kms().replicate_key(primary, REPLICA_REGION).arn
    with aws_proxy(moto.url) as away, ExitStack() as primary_proxy:
        near = primary_proxy.enter_context(aws_proxy(moto.url))
        names = {name.upper(): value for name, value in aws(near.url, primary).items()}
        names |= {
            "AWS_KMS_REPLICA_KEY_IDS": replica,
            "AWS_KMS_REPLICA_ENDPOINTS": away.url,
            "KMS_CACHE_MAX_SIZE": "100000",
            "KMS_HEALTH_CHECK_SECONDS": "1",
        }
        listen = f"unix:{tmp_path}/kms.sock"
        with spawned("--data-dir", str(tmp_path / "data"), "--listen", listen, environ=names) as daemon:
            daemon.wait_for("serving")
            async with AsyncKmsClient(listen) as client:
                warm = [f"warm-{number}" for number in range(5)]
                messages = [(tenant, await client.encrypt(tenant, b"payload")) for tenant in warm]
                for tenant in warm:
                    await client.sign_span(tenant, SPAN)
                assert not away.calls, "the replica is left alone while the primary is well"
                served, stop = 0, asyncio.Event()

                async def load() -> None:
                    nonlocal served
                    while not stop.is_set():
                        for tenant in warm:
                            await client.sign_span(tenant, SPAN)
                            await client.encrypt(tenant, b"more")
                            served += 2

                async def cold() -> Any:
                    tenant = f"cold-{secrets.token_hex(4)}"
                    await client.sign_span(tenant, SPAN)
                    return tenant, await client.encrypt(tenant, b"payload")

                callers = [asyncio.create_task(load()) for _ in range(4)]
                await asyncio.to_thread(primary_proxy.close)
                for _ in range(12):
                    messages.append(await cold())
                assert away.calls["GenerateDataKey"] >= 24
                assert await serving_region(daemon.ops_address) == REPLICA_REGION
                with aws_proxy(moto.url, port=urlsplit(near.url).port or 0) as returned:
                    for _ in range(200):
                        messages.append(await cold())
                        if (
                            await serving_region(daemon.ops_address) == "us-east-1"
                            and returned.calls["GenerateDataKey"]
                        ):
                            break
                        await asyncio.sleep(0.1)
                    stop.set()
                    await asyncio.gather(*callers)
                    assert await serving_region(daemon.ops_address) == "us-east-1"
                    before = away.calls.total()
                    await cold()
                    assert away.calls.total() == before
                    arns = set()
                    for tenant, message in messages:
                        opened = await client.decrypt(tenant, message.ciphertext_blob)
                        assert opened.plaintext == b"payload"
                        arns.add(message.key_id)
                assert served > 100
                assert arns == {primary, replica}


async def serving_region(address: str) -> str:
    """Return the region that the daemon's metrics name."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/q/metrics") as answer:
        text = await answer.text()
    found = re.search(r'kms_serving_region\{region="([^"]+)"\} 1\.0', text)
    assert found, text
    return found[1]
