"""What benchmarks write can be read again, and their ratios are made of rounds, not of totals."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import plan, records
from bench.records import Case, Rounds
from bench.rounds import Turn, cpu_nanoseconds, interleaved
from bench.workloads import KINDS

CASE = Case("SignSpan", concurrency=16, payload=300)


def test_records_survive_a_file(tmp_path: Path) -> None:
    """A record that was read equals the one that was written, to four digits; None is not written."""
    made = records.summary(CASE, "ours", Rounds(cpu_us=[100.0, 200.0], latencies_ms=[1.0]), Rounds(cpu_us=[50.0, 50.0]))
    path = tmp_path / "results" / "a.jsonl"
    records.write(path, records.machine(), [made])
    described, read = records.read(path)
    assert [made] == read
    assert "null" not in path.read_text()
    assert {"cpu", "cores", "kernel", "python", "grpcio", "libc", "commit"} <= set(described)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """A line that is no record is an error that names the file."""
    path = tmp_path / "other.jsonl"
    path.write_text('{"machine": {}}\n{"row": "SignSpan"}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl"):
        records.read(path)


def test_the_ratio_is_that_of_rounds() -> None:
    """The median of the rounds' ratios counts: one slow round of both sides changes nothing."""
    mine, base = Rounds(cpu_us=[20.0, 20.0, 9000.0]), Rounds(cpu_us=[10.0, 10.0, 1000.0])
    made = records.summary(CASE, "ours", mine, base)
    assert (2.0, (2.0, 5.5), "echo") == (made.ratio, made.ratio_quartiles, made.ratio_to)
    assert (20.0, 3) == (made.server_cpu_us, made.rounds)


def test_the_plan_varies_each_dimension() -> None:
    """Every row at its base, and for each dimension its smallest, its largest and what is between."""
    cases = [*plan.wire(), *plan.tenants()]
    assert len(cases) == len(set(cases))
    assert {plan.base(row) for row in KINDS} <= set(cases)
    assert {"tcp", "unix"} == {case.transport for case in cases}
    assert {1, 4, 16, 64} == {case.concurrency for case in cases}
    assert {64, 1024, 16 * 1024, 256 * 1024, 2**20, 2**22} == {each.payload for each in cases if each.row == "Encrypt"}
    for row in ("SignSpans", "SignSpans, proofs", "EncryptBatch", "DecryptBatch"):
        assert {1, 10, 100, 1000} == {case.batch for case in cases if case.row == row}
    assert {1, 100, 1000, 10_000} == {case.tenants for case in cases if case.row == "SignSpan"}
    assert {"", "audit", "audit, token", "grpc.aio client"} == {case.variant for case in cases if case.row == "Decrypt"}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_nearest_ranks(share: float, expected: int) -> None:
    """A percentile is one of the values."""
    assert expected == records.percentile([float(each) for each in range(100, 0, -1)], share)


def test_everybody_has_a_turn_in_each_round() -> None:
    """Contenders take turns, and the rounds that warm them are dropped."""
    order: list[str] = []

    def turn(name: str) -> Turn:
        order.append(name)
        return Turn(items=10, cpu_nanoseconds=len(order) * 1000, seconds=1.0, latencies_ms=(float(len(order)),))

    found = interleaved({name: lambda name=name: turn(name) for name in "ab"}, 3, warm=2)  # type: ignore[misc]
    assert [{"a", "b"}] * 5 == [set(order[at : at + 2]) for at in range(0, 10, 2)]
    assert {"a": 3, "b": 3} == {name: len(rounds.cpu_us) for name, rounds in found.items()}
    assert set(range(5, 11)) == {each for rounds in found.values() for each in rounds.latencies_ms}


def test_cpu_time_of_another_process_has_that_of_ended_threads() -> None:
    """A process that burnt CPU in a thread that ended has it in its clock."""
    burn = (
        "import threading, time; t = threading.Thread(target=lambda: sum(range(3_000_000))); t.start(); t.join();"
        " print(time.process_time_ns(), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        own = int(process.stdout.readline())
        assert cpu_nanoseconds(process.pid) >= own > 0
        process.communicate(b"\n")
