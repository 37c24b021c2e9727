"""KMS fails behind a proxy while a daemon works: it throttles, hangs, resets, answers rubbish, or cannot be reached."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc

from tests.authority import Authority, Pair
from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.daemon import spawned
from tests.faults.drill import Drill
from tests.faults.interpose import Machine, machine
from tests.faults.outcome import Outcome
from tests.faults.race import emulator

_PROMISE = "warm calls served; a miss makes at most 3 attempts and ends by its deadline"
FAULTS = {
    "KMS throttles": _PROMISE,
    "KMS answers 500": _PROMISE,
    "KMS denies all but DescribeKey": "warm calls served, misses refused with the action's name",
    "KMS hangs": _PROMISE,
    "KMS answers 5 s late": _PROMISE,
    "KMS resets connections": _PROMISE,
    "KMS resets connections after its work": _PROMISE,
    "KMS sends half a body": _PROMISE,
    "KMS sends a byte every 100 ms": _PROMISE,
    "KMS answers HTML": _PROMISE,
    "KMS has a certificate of another authority": _PROMISE,
    "KMS has no address in DNS": _PROMISE,
}
SHORT = ("KMS answers 500", "KMS has a certificate of another authority")
_VERDICTS: dict[str, Verdict] = dict(
    zip(
        FAULTS,
        ("throttle", "error", "deny", "stall", "late", "drop", "drop-answer", "half", "drip", "html", "drop", "drop"),
        strict=True,
    )
)
_DNS_CACHE_SECONDS = 11.0
"""How long the SDK's HTTP client remembers an address, and a bit."""


class _Kms:
    """KMS as the daemon sees it: a name, TLS, a proxy."""

    def __init__(self, proxy: AwsProxy, tls: ssl.SSLContext, folder: Path, good: Pair, machine: Machine) -> None:
        self.proxy = proxy
        self._tls = tls
        self._machine = machine
        self._good = good.write(folder / "good")
        self._bad = Authority().issue(host="localhost").write(folder / "bad")

    def fail(self, fault: str) -> None:
        actions = ("GenerateDataKey", "Encrypt", "Decrypt") if "DescribeKey" in fault else ()
        self.proxy.always(_VERDICTS[fault], *actions)
        if "certificate" in fault:
            self._tls.load_cert_chain(*self._bad)
        self._machine.set(names="DNS" in fault)

    def recover(self) -> None:
        self._tls.load_cert_chain(*self._good)
        self._machine.set()
        self.proxy.always("pass")

    def settle_seconds(self, fault: str) -> float:
        return _DNS_CACHE_SECONDS if "DNS" in fault else 0.0

    def attempts(self, tenants: Sequence[str]) -> int:
        return max(self.proxy.tenant_calls[tenant] for tenant in tenants)

    def kms_calls(self, tenant: str) -> int:
        return self.proxy.tenant_calls[tenant]


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject the faults one after the other into one daemon."""
    authority, tls, unwell = Authority(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), machine(folder)
    good = authority.issue(host="localhost")
    (folder / "ca.pem").write_bytes(authority.pem)
    with ExitStack() as resources:
        url, arn = resources.enter_context(emulator())
        proxy = resources.enter_context(aws_proxy(url, tls=tls))
        kms = _Kms(proxy, tls, folder, good, unwell)
        kms.recover()
        listen = f"unix:{folder}/kms.sock"
        environ = unwell.environ | {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": arn,
            "AWS_KMS_REGION": "us-east-1",
            "AWS_KMS_ENDPOINT": proxy.url.replace("127.0.0.1", "localhost"),
            "AWS_CA_BUNDLE": str(folder / "ca.pem"),
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_CACHE_MAX_SIZE": "100000",
        }
        arguments = ("--data-dir", f"{folder}/data", "--listen", f"127.0.0.1:0,{listen}")
        daemon = resources.enter_context(spawned(*arguments, environ=environ))
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with grpc.aio.insecure_channel(listen) as channel:
            drill = Drill(channel, daemon.address, kms)
            for fault in faults:
                yield await drill.run(fault, seconds)
