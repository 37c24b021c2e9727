"""`make demo` as it stands: every step is green, and nothing of it stays behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def demo(
    folder: Path, arguments: Sequence[str] = ("-m", "demo.tour"), **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run the demo with a folder for temporary files."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), **environ},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: "subprocess.Popen[str]", text: str) -> list[str]:
    """Return what the demo prints, up to a line that holds a text, or to its end."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    return lines


def left_behind(folder: Path) -> list[str]:
    """Return the files in a folder, and the command lines and environments of other processes that name it."""
    found = [str(file) for file in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        for file in ("cmdline", "environ"):  # that of the test itself does not: it was started before
            with suppress(OSError):  # it has ended, or closes its environment to others
                if str(folder) in (text := (process / file).read_text(errors="replace")):
                    found.append(text)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder whose path leaves room for the name of a unix socket."""
    with TemporaryDirectory(prefix="demo") as name:
        yield Path(name)


@pytest.mark.timeout(400)
def test_every_step_is_green(folder: Path) -> None:
    """Without a terminal, kept up until Ctrl-C: it exits with 0, and neither files nor processes stay."""
    with demo(folder, DEMO_KEEP="1") as process:
        lines = lines_until(process, "Everything stays up")
        found = re.search(r"http://127\.0\.0\.1:\d+/", lines[-1])
        assert found, "".join(lines)
        with urlopen(found[0], timeout=20) as page:  # noqa: S310  # it begins with http:
            assert "text/html" in page.headers["Content-Type"]
        process.send_signal(signal.SIGINT)
        lines += lines_until(process, "steps green")
        code = process.wait(timeout=30)
    printed = "".join(lines)
    summary = re.fullmatch(r"(\d+) steps green, (\d) skipped, 0 failed, \d+ s\n", lines[-1])
    assert (code, summary is not None) == (0, True), printed
    assert summary is not None
    assert 17 == int(summary[1]) + int(summary[2]), printed
    assert int(summary[2]) == len(re.findall(r"^     skipped: .+ is not here: .+$", printed, re.MULTILINE)) <= 2
    assert "\x1b[" not in printed
    assert [] == left_behind(folder)


HELD = """
import sys, threading
from demo.tour import Step, main
from tests.daemon import spawned

def hold(stage):
    environ = {"FOLDER": str(stage.folder)}
    stage.resources.enter_context(spawned("1000", command=["sleep"], environ=environ, own_session=True))
    stage.say("held")
    threading.Event().wait()

sys.exit(main([Step("Hold", hold), Step("Stop", lambda stage: None)]))
"""
"""A tour whose first step starts a process and waits."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle, or SIGTERM, ends what was started and removes its folder."""
    with demo(folder, ("-c", HELD)) as process:
        lines_until(process, "held")
        assert len(left_behind(folder)) >= 2
        process.send_signal(number)
        lines = lines_until(process, "Interrupted")
        assert (130, True) == (process.wait(timeout=30), "Interrupted" in lines[-1])
    assert [] == left_behind(folder)
