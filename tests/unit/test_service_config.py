"""Retries are the same everywhere: in the Python clients, in docs/clients.md and in the examples."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_client import channel

ROOT = Path(__file__).parents[2]


def service_config(source: str) -> Any:
    """Return the service config that a text holds, with durations as numbers."""
    begin = source.rindex("{", 0, source.index('"methodConfig"'))
    numbers = re.sub(r'"([\d.]+)s"', r"\1", source[begin:])
    return json.JSONDecoder().raw_decode(numbers)[0]


def text(file: str) -> str:
    return (ROOT / file).read_text("utf-8")


@pytest.mark.parametrize(
    "file",
    [
        "docs/clients.md",
        "examples/go/kms.go",
        "examples/java/src/main/java/dev/betrace/kms/example/Kms.java",
        "examples/node/kms.mjs",
    ],
)
def test_others_retry_as_the_python_clients_do(file: str) -> None:
    """With waitForReady, which the Python clients set call by call."""
    (expected,) = service_config(str(dict(channel.OPTIONS)["grpc.service_config"]))["methodConfig"]
    assert {"methodConfig": [{**expected, "waitForReady": True}]} == service_config(text(file))


def test_the_example_in_rust_retries_as_often() -> None:
    """tonic has no service config."""
    constants = dict(re.findall(r"^const (\w+): \w+ = (.+);$", text("examples/rust/src/kms.rs"), re.MULTILINE))
    assert str(channel.MAX_ATTEMPTS) == constants["MAX_ATTEMPTS"]
    assert f"Duration::from_millis({channel.INITIAL_BACKOFF * 1000:.0f})" == constants["INITIAL_BACKOFF"]
    assert 2 == channel.BACKOFF_MULTIPLIER
