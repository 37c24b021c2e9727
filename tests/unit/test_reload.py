"""Reloading: one that fails keeps no other from its turn."""

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.signals import StopSignals
from structlog.testing import capture_logs


def test_one_reload_that_fails_stops_no_other() -> None:
    """A refusal is logged in its words, a defect with its traceback, and the next one is called."""
    signals, called = StopSignals(), []

    def refuses() -> None:
        raise StartRefused("policy.yaml, line 3: no such operation")

    def defect() -> None:
        raise ZeroDivisionError

    for reload in (lambda: called.append(1), refuses, defect, lambda: called.append(2)):
        signals.on_reload(reload)
    with capture_logs() as logged:
        signals.reload()
        signals.reload()
    assert called == [1, 2, 1, 2]
    assert [line["log_level"] for line in logged] == ["error"] * 4
    assert "line 3" in logged[0]["event"]
    assert isinstance(logged[1]["exc_info"], ZeroDivisionError)
