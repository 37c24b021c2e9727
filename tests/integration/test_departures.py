"""Callers that leave amid their calls: none of it is in the log, all of it is counted, and nothing stays behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.aws_proxy import AwsProxy, aws_proxy
from tests.daemon import Process, spawned
from tests.integration.test_aws_daemon import aws
from tests.integration.test_hostile_decrypts import MIB, resident
from tests.raw_grpc import RawConnection

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

OURS = "/betrace.kms.v1.KeyManagementService/"
SPANS = [ComplianceSpan(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), name="n") for number in range(1, 301)]
CALLS: dict[str, tuple[str, Message]] = {
    "warm": (OURS + "Encrypt", pb.EncryptRequest(tenant_id="warm", plaintext=bytes(10_000))),
    "cold": (OURS + "Encrypt", pb.EncryptRequest(tenant_id="cold", plaintext=b"payload")),
    "refused": (OURS + "Encrypt", pb.EncryptRequest(tenant_id="!")),
    "batch": (OURS + "SignSpans", pb.SignSpansRequest(tenant_id="warm", spans=SPANS)),
    "proofs": (OURS + "SignSpans", pb.SignSpansRequest(tenant_id="warm", spans=SPANS, mode=pb.BATCH_PROOF)),
    "store": (OURS + "GetPublicKeys", pb.GetPublicKeysRequest(tenant_id="warm")),
    "probe": ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()),
    "unknown service": ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="none")),
    "watch": ("/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest()),
    "reflection": (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="betrace.kms.v1.KeyManagementService"),
    ),
}
CANCELLED = int(os.environ.get("CANCELLED_CALLS", "20000"))
CONNECTIONS, STREAMS = 8, 100
IN_FLIGHT = "kms_rpc_in_flight"


@dataclass
class Hung:
    """A daemon with a tenant whose keys are cached, and for all others a KMS that does not answer."""

    daemon: Process
    proxy: AwsProxy
    audit: Path

    def count(self, *statuses: str) -> int:
        """Return how many calls of Encrypt ended so; "" is in flight."""
        found = self.daemon.metrics()
        names = [
            f'kms_rpc_requests_total{{method="Encrypt",status="{each}"}}' if each else IN_FLIGHT for each in statuses
        ]
        return int(sum(found.get(name, 0) for name in names))

    def audited(self, result: str) -> int:
        """Return how many calls of the cold tenant ended so, by the audit trail."""
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return sum(line["result"] == result for line in lines if line.get("tenant") == "cold")

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something."""
        for _ in range(1_000):
            if condition():
                return
            time.sleep(0.03)
        metrics = {name: value for name, value in self.daemon.metrics().items() if name.startswith("kms_rpc_")}
        raise AssertionError(f"it did not come: {metrics}\n{self.daemon.log[-2000:]}")

    def in_flight(self, calls: int) -> None:
        """Wait until so many calls are in flight."""
        self.until(lambda: calls == self.count(""))


def defects(lines: Sequence[str]) -> Sequence[str]:
    """Return what a log must not have: errors, tracebacks, and what gRPC's core writes, which is not as our lines."""
    return [line for line in lines if not line.startswith("20") or "[error" in line or "Traceback" in line]


@contextmanager
def hung(folder: Path, moto: "MotoServer", key: str, **values: str) -> Iterator[Hung]:
    """Run such a daemon, and find no defects in its log.

    After about seven seconds without an answer its calls to KMS fail, and then it leaves KMS alone.
    """
    with aws_proxy(moto.url) as proxy:
        given = aws(proxy.url, key) | {
            "kms_data_dir": f"{folder}/data",
            "kms_server_listen": "127.0.0.1:0",
            "kms_audit_file": f"{folder}/audit.log",
            "kms_budget_tenant_per_second": "0",
            "aws_kms_call_timeout_ms": "600000",
        }
        environ = {name.upper(): value for name, value in (given | values).items()}
        with spawned(environ=environ) as daemon:
            daemon.wait_for("serving")
            with grpc.insecure_channel(daemon.address) as channel:
                stub: Any = KeyManagementServiceStub(channel)
                for name in ("warm", "batch"):
                    path, request = CALLS[name]
                    getattr(stub, path.removeprefix(OURS))(request)
                proxy.always("stall", "GenerateDataKey")
                yield Hung(daemon, proxy, folder / "audit.log")
                stub.Encrypt(CALLS["warm"][1], timeout=20)
        assert [] == defects(daemon.lines)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, moto: "MotoServer") -> Iterator[Hung]:
    """One daemon for all who leave, some of them while their audit line is written."""
    with hung(tmp_path_factory.mktemp("hung"), moto, moto.create_key(), kms_audit_required="true") as daemon:
        yield daemon


@pytest.fixture
def daemon(tmp_path: Path, moto: "MotoServer", kms_key: str) -> Iterator[Hung]:
    """A daemon of one test, that counted nothing yet."""
    with hung(tmp_path, moto, kms_key) as daemon:
        yield daemon


@pytest.mark.parametrize("kind", CALLS)
def test_caller_that_leaves_is_no_error(used: Hung, kind: str) -> None:
    """Its calls are cancelled, or its connection breaks, sooner or later, with answers that it did not read."""
    path, request = CALLS[kind]
    before = len(used.daemon.lines)
    for seconds in (0.0, 0.001, 0.01, 0.03):
        for cancels in (True, False):
            connection = RawConnection(used.daemon.address)
            for _ in range(40):
                connection.begin(path)
                connection.send(request.SerializeToString(), end=kind != "reflection")
            time.sleep(seconds)
            if cancels:
                connection.reset_calls()
                time.sleep(0.01)
            connection.reset()
    used.in_flight(0)
    assert [] == defects(used.daemon.lines[before:])


CLIENT = """
import asyncio, sys
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, KmsClientError

SPANS = [ComplianceSpan(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), name="n") for number in range(1, 301)]

async def forever(call, *arguments):
    while True:
        try:
            await call(*arguments)
        except KmsClientError:
            pass

async def main():
    async with AsyncKmsClient(sys.argv[1]) as client:
        calls = [forever(client.encrypt, tenant, bytes(10_000)) for tenant in ("warm", "cold", "!") for _ in range(20)]
        print("calling", flush=True)
        await asyncio.gather(*calls, *(forever(client.sign_spans, "warm", SPANS) for _ in range(4)))

asyncio.run(main())
"""


def test_caller_that_is_killed_is_no_error(used: Hung) -> None:
    """kill -9 of a client with 64 calls in flight: warm, cold, refused and batches."""
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, used.daemon.address],
            stdout=subprocess.PIPE,
        ) as client:
            assert client.stdout is not None
            client.stdout.readline()
            used.until(lambda: used.count("") >= 20)
            client.kill()
        used.in_flight(0)


def test_cancelled_calls_are_counted_and_audited(daemon: Hung) -> None:
    """Each of those that had arrived, as CANCELLED."""
    connection = RawConnection(daemon.daemon.address)
    for _ in range(60):
        connection.begin(OURS + "Encrypt")
        connection.send(CALLS["cold"][1].SerializeToString())
    daemon.in_flight(60)
    connection.reset_calls()
    daemon.in_flight(0)
    connection.reset()
    assert 60 == daemon.count("CANCELLED")
    daemon.until(lambda: 60 == daemon.audited("CANCELLED"))


def test_miss_ends_at_its_deadline(daemon: Hung) -> None:
    """Whether or not the caller ends it, the daemon does; it frees the call, and counts and audits it as what it is."""
    silent = RawConnection(daemon.daemon.address)
    for _ in range(10):
        silent.begin(OURS + "Encrypt", timeout="1S")
        silent.send(CALLS["cold"][1].SerializeToString())
    with grpc.insecure_channel(daemon.daemon.address) as channel:
        stub: Any = KeyManagementServiceStub(channel)
        waiting = [stub.Encrypt.future(CALLS["cold"][1], timeout=seconds) for seconds in (0.5, 1.0, 1.234)]
        assert [grpc.StatusCode.DEADLINE_EXCEEDED] * 3 == [call.code() for call in waiting]
    daemon.in_flight(0)
    silent.reset()
    daemon.until(lambda: 13 == daemon.count("DEADLINE_EXCEEDED") == daemon.audited("DEADLINE_EXCEEDED"))


def test_kms_is_not_asked_for_callers_that_left(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """Of 100 cold calls of a tenant, KMS has those eight that had a slot; those that queued are never sent."""
    with hung(tmp_path, moto, kms_key, aws_kms_call_timeout_ms="1000") as daemon:
        connection = RawConnection(daemon.daemon.address)
        for number in range(100):
            request = pb.EncryptRequest(tenant_id="left", encryption_context={"record": str(number)})
            connection.begin(OURS + "Encrypt")
            connection.send(request.SerializeToString())
        daemon.in_flight(100)
        daemon.until(lambda: 8 == daemon.proxy.tenant_calls["left"])
        connection.reset_calls()
        daemon.in_flight(0)
        connection.reset()
        unreachable = 'kms_calls_total{operation="GenerateDataKey",outcome="KMS_UNREACHABLE"}'
        daemon.until(lambda: 8 == daemon.daemon.metrics().get(unreachable))  # their slots are free now
        assert 8 == daemon.proxy.tenant_calls["left"]


@pytest.mark.timeout(600)
def test_many_cancelled_calls_leave_nothing(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """20,000 of them, CANCELLED_CALLS=... for more: each is counted, none stays in flight, and memory does not grow.

    They are cold: half of them wait for one key, and half for one each. One connection in eight breaks instead. KMS
    answers after a second and a half, so that a few calls may come to an end on a slow machine.
    """
    with hung(tmp_path, moto, kms_key, kms_audit_file="") as daemon:
        daemon.proxy.always("slow", "GenerateDataKey")
        waves = -(-CANCELLED // (CONNECTIONS * STREAMS))
        served, memory = daemon.count("OK"), list[int]()

        def arrived(calls: int) -> bool:
            return calls == daemon.count("OK", "CANCELLED", "") - served

        for wave in range(waves):
            connections = [RawConnection(daemon.daemon.address) for _ in range(CONNECTIONS)]
            for number in range(CONNECTIONS * STREAMS):
                context = {"wave": str(wave), "record": str(number if wave % 2 else 0)}
                request = pb.EncryptRequest(tenant_id="cold", encryption_context=context)
                connection = connections[number % CONNECTIONS]
                connection.begin(OURS + "Encrypt")
                connection.send(request.SerializeToString())
            daemon.until(partial(arrived, (wave + 1) * CONNECTIONS * STREAMS))
            breaking, *others = connections
            breaking.reset()
            for connection in others:
                connection.reset_calls()
            daemon.in_flight(0)
            for connection in others:
                connection.reset()
            memory.append(resident(daemon.daemon))
        assert daemon.count("CANCELLED") > CANCELLED // 2
        print(f"\n{daemon.count('CANCELLED'):,} cancelled calls; memory {memory[4] // MIB} to {memory[-1] // MIB} MiB")
        assert memory[-1] - memory[4] < 8 * MIB
