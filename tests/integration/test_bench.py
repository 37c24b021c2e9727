"""The benchmark runs and what it writes has its shape; figures are for a quiet machine, not for tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb

from bench import echo_server, load, records, servers
from bench.load import LoadFailed
from bench.workloads import KINDS, SERVICE, Workload
from tests.interop.tools import tool

ROOT = Path(__file__).parents[2]


@pytest.fixture
def h2load() -> None:
    """Be there, or skip the test; in CI, fail it."""
    tool("h2load")


def test_help_installs_nothing() -> None:
    """Who asks for the flags of a comparison gets them without 71 MB of its peer."""
    plans = [
        subprocess.run(
            ["make", "-n", "-o", ".venv/dev.stamp", "-W", "requirements/peers.txt", "bench-peer", f"FLAGS={flags}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flags in ("--help", "")
    ]
    assert [False, True] == ["install" in plan for plan in plans]


@pytest.mark.usefixtures("h2load")
@pytest.mark.timeout(240)
def test_a_short_run_writes_every_sort_of_record(tmp_path: Path) -> None:
    """Both sides of every case are there, with CPU, rates, latencies and memory; the machine is described."""
    output = tmp_path / "bench.jsonl"
    command = [sys.executable, "-m", "bench.run", "--quick", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == run.returncode, run.stdout + run.stderr
    described, found = records.read(output)
    assert "h2load" in described["load_generator"]
    sides = {record.case: {each.side for each in found if each.case == record.case} for record in found}
    assert 11 == len(sides)
    assert {"ours", "echo"} == set.union(*(sides[case] for case in sides if case.transport or case.row == "start"))
    assert {"pyca"} == set.union(*(sides[case] for case in sides if not case.transport and case.row != "start"))
    for record in found:
        beside = record.case.variant == "4 MiB beside"
        assert (record.server_cpu_us is None) == beside
        assert record.per_second
        assert (record.p99_ms is None) == (record.side == "pyca")
        assert (record.rss_kib is None) == (record.side == "pyca")
        assert (record.ratio_to == "echo") == (record.side == "ours")
    assert {"tcp", "unix", ""} == {case.transport for case in sides}
    assert {1, 3} == {case.tenants for case in sides}
    assert 100 in {case.batch for case in sides}
    assert str(tmp_path) not in json.dumps(described)


def test_every_call_can_be_made() -> None:
    """Each RPC of the service has a row, and the daemon answers it well."""
    with servers.ours() as server, server.daemon() as daemon:
        made = {row: kind.make(daemon, kind.payload, kind.batch) for row, kind in KINDS.items()}
        assert all(workload.items == KINDS[row].batch for row, workload in made.items())
        assert all(workload.answer_bytes > 0 for workload in made.values())
    rpcs = pb.DESCRIPTOR.services_by_name["KeyManagementService"].methods
    assert {f"/{SERVICE}/{rpc.name}" for rpc in rpcs} == {workload.method for workload in made.values()}


@pytest.mark.usefixtures("h2load")
def test_a_refused_call_fails_the_turn() -> None:
    """An answer of HTTP status 200 without a message is not taken for a good one."""
    with servers.ours() as server:
        refused = Workload(f"/{SERVICE}/SignSpan", pb.SignSpanRequest(tenant_id="!").SerializeToString(), 100, 1, 0)
        with pytest.raises(LoadFailed, match=r"8 calls and 0 bytes of 8 and 840"):
            load.turn(server.target(refused, refused.method, "tcp"), 8, 2)


@pytest.mark.usefixtures("h2load")
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_the_echo_answers_as_many_bytes_as_asked(transport: str) -> None:
    """The echo answers any request with the size in its method; a turn counts items, CPU, time and each call."""
    with servers.echo() as server:
        workload = Workload("", b"x" * 70_000, 100_000, 5, 0)
        turn = load.turn(server.target(workload, echo_server.method(100_000), transport), 20, 4)
    assert (100, 20) == (turn.items, len(turn.latencies_ms))
    assert turn.cpu_nanoseconds > 0
    assert max(turn.latencies_ms) / 1000 <= turn.seconds


@pytest.mark.parametrize("method", ["/bench.Echo/many", "/bench.Echo/", "/betrace.kms.v1.KeyManagementService/1"])
def test_the_echo_has_no_other_methods(method: str) -> None:
    """Methods of other names are UNIMPLEMENTED, as they are in the daemon."""
    with servers.echo() as server, grpc.insecure_channel(server.addresses["tcp"]) as channel:
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"x")
    assert grpc.StatusCode.UNIMPLEMENTED == refused.value.code()
