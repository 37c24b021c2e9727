"""How the page computes what it shows: its own script, run by Node.js."""

import json
import subprocess
from typing import Any

import pytest

from tests.interop.tools import ROOT, tool

SCRIPT = ROOT / "server/betrace_kms_server/operations/page/figures.js"
METRICS = """
kms_call_duration_seconds_bucket{le="0.01",operation="Decrypt"} 6.0
kms_call_duration_seconds_bucket{le="0.1",operation="Decrypt"} 9.0
kms_call_duration_seconds_bucket{le="+Inf",operation="Decrypt"} 10.0
kms_call_duration_seconds_count{operation="Decrypt"} 10.0
kms_call_duration_seconds_bucket{le="0.01",operation="Encrypt"} 1.0
kms_call_duration_seconds_bucket{le="0.1",operation="Encrypt"} 1.0
kms_call_duration_seconds_bucket{le="+Inf",operation="Encrypt"} 1.0
"""
FOUND = 'histograms(metrics, "kms_call_duration_seconds", "operation")'


def value(expression: str) -> Any:
    """Return the value of an expression, which may use `metrics`."""
    script = f"{SCRIPT.read_text('utf-8')}\nconst metrics = {json.dumps(METRICS)};\n"
    script += f"console.log(JSON.stringify({expression}))"
    command = [tool("node"), "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def test_histograms_are_read_and_added_up() -> None:
    """By their label, and the counts of all of them together."""
    assert [["Decrypt", "Encrypt"], [6, 9, 10], [7, 10, 11]] == value(
        f'[[...{FOUND}.keys()], {FOUND}.get("Decrypt").counts, merged({FOUND}).counts]'
    )


QUANTILES: tuple[tuple[float, list[int], float | None], ...] = (
    (0.5, [0, 0, 0], 0.01 * 5 / 6),
    (0.75, [0, 0, 0], 0.01 + 0.09 * 1.5 / 3),
    (0.99, [0, 0, 0], 0.1),  # the last bucket has no end: its beginning, as histogram_quantile says
    (0.5, [6, 6, 6], 0.01 + 0.09 * 2 / 3),
    (0.5, [6, 9, 10], None),
)


def test_quantiles_are_those_of_prometheus() -> None:
    """Interpolated within a bucket, of what came between two readings; none if nothing did."""
    calls = (f'quantile({share}, {FOUND}.get("Decrypt"), {{counts: {before}}})' for share, before, _ in QUANTILES)
    found = value(f"[{', '.join(calls)}]")
    assert [None if each is None else pytest.approx(each) for *_, each in QUANTILES] == found


SHOWN = {
    "latency(0.0000123)": "0.01 ms",
    "latency(0.0456)": "45.6 ms",
    "latency(2.5)": "2.50 s",
    "latency(null)": "\u2013",
    "duration(59.9)": "59 s",
    "duration(3599)": "59 min",
    "duration(7500)": "2 h 5 min",
    "duration(90000)": "1 d 1 h",
    "percent(0.99999)": "99.9 %",
    "percent(1)": "100.0 %",
    "percent(null)": "\u2013",
    "perSecond(1234.5)": "1,235 /s",
}


def test_figures_have_units() -> None:
    """Shares are rounded down, so that 100 % means all; what is not known is a dash."""
    assert list(SHOWN.values()) == value(f"[{', '.join(SHOWN)}].map(text)")
