"""Restarts under load: `make drill-restart` in short, without the JVM."""

from collections import Counter
from pathlib import Path

from tests.faults.restart import drill


def test_no_call_fails_while_the_daemon_restarts(tmp_path: Path) -> None:
    """Both Python clients as they are, and grpc-go as docs/clients.md configures it, by TCP and by a unix socket."""
    report = drill(tmp_path, 3, ["Python", "Python asyncio", "grpc-go"], pause=0.7)
    assert {name: Counter() for name in report.tallies} == {
        name: tally.failures for name, tally in report.tallies.items()
    }
    assert all(tally.calls > 100 for tally in report.tallies.values()), report
