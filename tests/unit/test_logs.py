"""The log: both forms, libraries' loggers, and what must never be in it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from betrace_kms_server.telemetry.logs import configure

LIBRARIES = ["botocore", "aiobotocore", "aioboto3", "boto3", "aiosqlite", "aiocache", "urllib3"]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Put the process's logging back, which `configure` replaces."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    yield
    root.handlers = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail_with(secret: bytes) -> None:
    """Raise an error while key material is in a local variable."""
    raise OSError(f"cannot use a key of {len(secret)} bytes")


def test_json(stream: io.StringIO) -> None:
    """Each event is one line of JSON with its level, its time in UTC and its values."""
    configure("json", "info", stream)
    structlog.get_logger().info("Serving", address="127.0.0.1:50051", keys=3)
    structlog.get_logger().warning("two\nlines")
    first, second = lines_of(stream)
    assert first.pop("timestamp").endswith("Z")
    assert {"event": "Serving", "level": "info", "address": "127.0.0.1:50051", "keys": 3} == first
    assert ("two\nlines", "warning") == (second["event"], second["level"])


def test_console(stream: io.StringIO) -> None:
    """A person gets a line with time, level, event and values, without colours where there is no terminal."""
    configure("console", "info", stream)
    structlog.get_logger().info("Serving", address="127.0.0.1:50051")
    (line,) = stream.getvalue().splitlines()
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert "[info     ] Serving address=127.0.0.1:50051" == rest.strip()
    assert "\x1b" not in line


@pytest.mark.parametrize("form", ["console", "json"])
def test_percent_arguments(stream: io.StringIO, form: str) -> None:
    """Arguments after a text with % go into it, in our loggers and in those of libraries."""
    configure(form, "info", stream)
    structlog.get_logger().info("%d keys of %s", 3, "acme")
    logging.getLogger("library").info("%s failed %d times", "it", 2)
    logging.getLogger("library").info("100% sure")
    text = stream.getvalue()
    for expected in ("3 keys of acme", "it failed 2 times", "100% sure"):
        assert 1 == text.count(expected)
    assert "%s" not in text
    assert "positional_args" not in text


def test_loggers_of_libraries_go_the_same_way(stream: io.StringIO) -> None:
    """A library's record is a line of the same form, and is written once."""
    configure("json", "info", stream)
    logging.getLogger("some.library").warning("careful")
    (line,) = lines_of(stream)
    assert {"event", "level", "timestamp"} == set(line)
    assert ("careful", "warning") == (line["event"], line["level"])


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(stream: io.StringIO, level: str, shown: list[str]) -> None:
    """Events below the level are not written, be they ours or a library's."""
    configure("json", level, stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)(f"our {name}")
        getattr(logging.getLogger("library"), name)(f"its {name}")
    assert [text for name in shown for text in (f"our {name}", f"its {name}")] == [
        line["event"] for line in lines_of(stream)
    ]


@pytest.mark.parametrize("library", LIBRARIES)
def test_sdks_never_log_below_info(stream: io.StringIO, library: str) -> None:
    """What botocore and its like log at DEBUG holds key material: it is never written, whatever the level."""
    configure("json", "debug", stream)
    for name in (library, f"{library}.endpoint", f"{library}.a.b"):
        logger = logging.getLogger(name)
        assert not logger.isEnabledFor(logging.DEBUG)
        logger.debug("Making request with params: s3cret")
        logger.info("retrying")
    logging.getLogger("another").debug("shown")
    assert ["retrying"] * 3 + ["shown"] == [line["event"] for line in lines_of(stream)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_sdks_are_no_louder_than_we_are(stream: io.StringIO, library: str) -> None:
    """A higher level holds for them as well."""
    configure("json", "error", stream)
    logging.getLogger(f"{library}.endpoint").warning("careful")
    logging.getLogger(f"{library}.endpoint").error("broken")
    assert ["broken"] == [line["event"] for line in lines_of(stream)]


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "library"])
@pytest.mark.parametrize("form", ["console", "json"])
def test_tracebacks_show_no_local_variables(stream: io.StringIO, form: str, ours: bool) -> None:
    """An exception is logged with its traceback and its text, and without what its frames held: keys are among that."""
    configure(form, "info", stream)
    try:
        fail_with(b"s3cret key material")
    except OSError as error:
        if ours:
            structlog.get_logger().error("It failed", exc_info=error)
        else:
            logging.getLogger("library").error("It failed", exc_info=error)
    text = stream.getvalue()
    assert "cannot use a key of 19 bytes" in text
    assert "fail_with" in text
    assert "s3cret key" not in text.replace('fail_with(b"s3cret key material")', "")
    if form == "json":
        (line,) = lines_of(stream)
        assert ["OSError"] == [one["exc_type"] for one in line["exception"]]
        assert all("locals" not in frame for frame in line["exception"][0]["frames"])


def test_configuring_again_replaces(stream: io.StringIO) -> None:
    """The last configuration counts: nothing is written twice, nor to the former place."""
    former = io.StringIO()
    configure("console", "debug", former)
    configure("json", "info", stream)
    structlog.get_logger().info("once")
    logging.getLogger("library").debug("not at all")
    assert ["once"] == [line["event"] for line in lines_of(stream)]
    assert "" == former.getvalue()


def test_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """The log goes to stderr, so that stdout is free for a command's own output."""
    configure("json", "info")
    structlog.get_logger().info("here")
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "here" == json.loads(captured.err)["event"]
