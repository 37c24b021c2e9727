"""What gives the daemon its AWS credentials fails while it works, or gives others: credentials live seconds here.

A container agent and STS are scripted servers, `credential_process` is a script, the shared file is a file. What is
signed with goes to KMS through a proxy, which knows who signed.
"""

import asyncio
import shlex
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count, repeat
from pathlib import Path
from typing import Any

import grpc
import orjson
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests.aws_proxy import AwsProxy, aws_proxy
from tests.aws_sources import Reply, reply, scripted_source
from tests.daemon import spawned
from tests.faults.drill import Drill
from tests.faults.outcome import Outcome
from tests.faults.race import emulator

_PROMISE = "warm calls served; a miss ends by its deadline and names the credentials; KMS is not asked in vain"
_ROTATED = "the credentials file is rewritten, and AWS refuses the former ones"
FAULTS = {
    "the container agent answers 500": _PROMISE,
    "the container agent hangs": _PROMISE,
    "the container agent gives credentials that have expired": _PROMISE,
    "STS refuses the role": _PROMISE,
    "STS hangs": _PROMISE,
    "credential_process fails": _PROMISE,
    "credential_process hangs": _PROMISE + "; it is killed with what it started",
    "AWS refuses the credentials as expired": _PROMISE,
    _ROTATED: "all calls served, misses too, whether the file is empty, cut or gone for a moment",
}
SHORT = ("AWS refuses the credentials as expired", _ROTATED)
_LIVES_SECONDS = 4.0
_CHECK_SECONDS = 2.0
"""How often the daemon asks a source that failed, and looks at the file."""
_REWRITTEN_SECONDS, _SERVED_SECONDS, _COLD_CALLERS, _MOST_ATTEMPTS = 0.3, 20.0, 2, 3
_REFUSED_BY_STS = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
_EMPTY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
"""Unset, so that the sources behind the environment are asked."""


class _Source:
    """A source of credentials, and KMS behind it."""

    def __init__(self, proxy: AwsProxy, folder: Path) -> None:
        self.proxy = proxy
        self.fault = ""
        self._mode, self._pids, self._script = folder / "mode", folder / "pids", folder / "process.sh"
        self._file, self._config, self._token = folder / "credentials", folder / "config", folder / "token"

    def environ(self, url: str, fault: str) -> Mapping[str, str]:
        """Return the environment in which a daemon asks the source of a fault; `url` is that of the scripted server."""
        found = {**_EMPTY, "AWS_SHARED_CREDENTIALS_FILE": str(self._file), "AWS_CONFIG_FILE": str(self._config)}
        if "agent" in fault:
            return found | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/role"}
        if "STS" in fault:
            self._token.write_text("token")
            role = "arn:aws:iam::123456789012:role/daemon"
            return found | {
                "AWS_ROLE_ARN": role,
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(self._token),
                "AWS_ENDPOINT_URL_STS": url,
            }
        if "credential_process" in fault:
            self._script.write_text(
                f"echo $$ >> {self._pids}\ncase $(cat {self._mode}) in *fails) exit 1;;\n"
                f"*hangs) sleep 1000 & echo $! >> {self._pids}; wait;; esac\n"
                f"expires=$(date -u -d '+{_LIVES_SECONDS:.0f} seconds' +%Y-%m-%dT%H:%M:%SZ)\n"
                """echo '{"Version": 1, "AccessKeyId": "AKIDPROCESS", "SecretAccessKey": "secret","""
                """ "SessionToken": "token", "Expiration": "'$expires'"}'\n"""
            )
            self._config.write_text(f"[default]\ncredential_process = sh {shlex.quote(str(self._script))}\n")
            self.recover()
            return found
        self.write("AKIDFIRST")
        return found

    def write(self, key_id: str, path: Path | None = None) -> None:
        """Write the credentials file."""
        (path or self._file).write_text(f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = secret\n")

    async def rewrite(self, key_id: str, how: int) -> None:
        """Put other credentials into the file, which cannot be used for a moment; then AWS knows no others."""
        if how % 4 == 0:
            self._file.write_text("")
        elif how % 4 == 1:
            self._file.write_text(f"[default]\naws_access_key_id = {key_id}\n")
        elif how % 4 == 2:
            self._file.unlink()
        if how % 4 == 3:
            self.write(key_id, self._file.with_name("new"))
            self._file.with_name("new").replace(self._file)
        else:
            await asyncio.sleep(0.05)
            self.write(key_id)
        self.proxy.access_keys = {key_id}

    def answer(self, line: str, _head: str, _body: bytes) -> Reply:
        """Answer as the container agent, or as STS."""
        expires = (datetime.now(UTC) + timedelta(seconds=_LIVES_SECONDS)).isoformat()
        if "hangs" in self.fault:
            return None
        if "expired" in self.fault:
            expires = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        if "/role" in line:
            whole = {"AccessKeyId": "AKIDAGENT", "SecretAccessKey": "secret", "Token": "token", "Expiration": expires}
            return reply("{}", status=500) if "500" in self.fault else reply(orjson.dumps(whole).decode())
        if "refuses" in self.fault:
            return reply(_REFUSED_BY_STS, status=403, kind="text/xml")
        found = (
            "<AccessKeyId>AKIDROLE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
            f"<SessionToken>token</SessionToken><Expiration>{expires}</Expiration>"
        )
        name = "AssumeRoleWithWebIdentity"
        return reply(
            f'<{name}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{name}Result>'
            f"<Credentials>{found}</Credentials></{name}Result></{name}Response>",
            kind="text/xml",
        )

    def fail(self, fault: str) -> None:
        self.fault = fault
        self._mode.write_text(fault)
        if fault.startswith("AWS"):
            self.proxy.always("expired")

    def recover(self) -> None:
        self.fault = ""
        self._mode.write_text("")
        self.proxy.always("pass")

    def settle_seconds(self, fault: str) -> float:
        return 0.0 if fault.startswith("AWS") else _LIVES_SECONDS + _CHECK_SECONDS

    def attempts(self, tenants: Sequence[str]) -> int:
        return max(self.proxy.tenant_calls[tenant] for tenant in tenants)

    def kms_calls(self, tenant: str) -> int:
        return self.proxy.tenant_calls[tenant]

    def processes(self) -> Sequence[str]:
        """Return the processes that the script has left behind."""
        pids = self._pids.read_text().split() if self._pids.exists() else []
        return [pid for pid in pids if "sleep" in _command(pid) or str(self._script) in _command(pid)]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject each fault into a daemon of its own."""
    with ExitStack() as resources:
        url, arn = resources.enter_context(emulator())
        for number, fault in enumerate(faults):
            own = folder / str(number)
            own.mkdir(0o700)
            with aws_proxy(url) as proxy:
                yield await _injected(own, fault, _Source(proxy, own), arn, seconds)


async def _injected(folder: Path, fault: str, source: _Source, arn: str, seconds: float) -> Outcome:
    listen = f"unix:{folder}/kms.sock"
    async with scripted_source(source.answer) as server:
        environ = {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": arn,
            "AWS_KMS_ENDPOINT": source.proxy.url,
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_CACHE_MAX_SIZE": "100000",
            **source.environ(server.url, fault),
        }
        with spawned("--data-dir", f"{folder}/data", "--listen", f"127.0.0.1:0,{listen}", environ=environ) as daemon:
            await asyncio.to_thread(daemon.wait_for, "serving", 60)
            async with grpc.aio.insecure_channel(listen) as channel:
                if fault == _ROTATED:
                    return await _rotated(fault, source, KeyManagementServiceStub(channel), seconds)
                outcome = await Drill(channel, daemon.address, source).run(fault, seconds)
        left = source.processes()
    return replace(outcome, problems=[*outcome.problems, *(f"process {pid} is left" for pid in left)])


async def _rotated(fault: str, source: _Source, stub: Any, seconds: float) -> Outcome:
    """Rewrite the file time and again under warm calls and misses, none of which is tried again by its caller."""
    served, refused, over = Counter[str](), list[str](), asyncio.Event()

    async def call(kind: str, tenant: str) -> None:
        try:
            await stub.Encrypt(pb.EncryptRequest(tenant_id=tenant, plaintext=b"payload"), timeout=20)
            served[kind] += 1
        except grpc.aio.AioRpcError as error:
            refused.append(f"a call of a {kind} tenant failed: {error.details()}")

    async def calling(kind: str, tenants: Iterator[str]) -> None:
        while not over.is_set():
            await call(kind, next(tenants))
            await asyncio.sleep(0.01)

    cold = map("cold-{}".format, count())
    callers = [asyncio.create_task(calling("warm", repeat("warm")))]
    callers += [asyncio.create_task(calling("cold", cold)) for _ in range(_COLD_CALLERS)]
    rewrites = max(4, round(seconds / _REWRITTEN_SECONDS))
    for number in range(rewrites):
        await source.rewrite(f"AKIDNUMBER{number}", number)
        known, ended = served["cold"], time.monotonic() + _SERVED_SECONDS
        while served["cold"] < known + 2 * _COLD_CALLERS and not refused and time.monotonic() < ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the next ones come when these are in use
        await asyncio.sleep(_REWRITTEN_SECONDS)
    over.set()
    await asyncio.gather(*callers)
    attempts = max(source.proxy.tenant_calls.values())
    problems = [*refused[:3], *([f"{attempts} attempts for one miss"] if attempts > _MOST_ATTEMPTS else [])]
    share = 100 * served.total() / (served.total() + len(refused))
    return Outcome(
        fault,
        f"{share:.4g} % of {served.total() + len(refused):,} warm calls and misses served over {rewrites} rewrites,"
        f" {attempts} attempts",
        problems,
    )
