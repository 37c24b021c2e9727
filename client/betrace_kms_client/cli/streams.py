"""What becomes of a verb whose streams fail, or that is interrupted: one line on stderr and an exit code.

It is done once, around every verb, because any of them may find its output full, closed or a broken pipe, its input
closed, or a person who presses Ctrl-C.
"""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO, NoReturn

import click

STREAM_FAILED = 2
INTERRUPTED = 130
"""What a shell reports of a command that SIGINT ended."""
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""Sixteen times what a daemon takes unless configured otherwise (kms.server.max-message-bytes)."""

_READ_BYTES = 1024 * 1024
_WORDS: Mapping[int | None, str] = {
    errno.EPIPE: "the output was closed before everything was written",
    errno.EBADF: "stdin or stdout is closed: open it, or give files",
    errno.ENOSPC: "the output cannot be written: no space is left",
}


class Refused(click.ClickException):
    """An input or output that cannot be taken: one line, without the usage of the verb, which was right."""

    exit_code = STREAM_FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line on stderr."""
        click.echo(f"betrace-kms: {self.message}", file=file, err=True)


def open_missing_streams() -> None:
    """Take the descriptors of streams that the caller closed, before a socket or a file gets them and is written to.

    Reading and writing fail then as on a closed stream; what goes to a closed stderr is dropped.
    """
    for descriptor, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


@contextmanager
def stream_errors() -> Iterator[None]:
    """End the command with one line if a stream fails, its input nests without end, or it is interrupted."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # or its failure would come after the exit code
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except click.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):  # at a prompt
            _end("interrupted", INTERRUPTED)
        raise
    except RecursionError:
        _end("the input is nested too deeply: more than several hundred levels are not read", STREAM_FAILED)
    except OSError as error:
        _end(_words(error), STREAM_FAILED)


def _words(error: OSError) -> str:
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return _WORDS.get(error.errno) or f"an input or output failed: {error.strerror or error}"


def _end(words: str, code: int) -> NoReturn:
    discard_output()
    with suppress(OSError):
        click.echo(f"betrace-kms: {words}", err=True)
    raise SystemExit(code) from None


def discard_output() -> None:
    """Let what stdout still holds go nowhere, so that the interpreter does not fail over it at its end."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def read_whole(source: BinaryIO) -> bytes:
    """Read an input that is taken as a whole; one without end is refused."""
    content = bytearray()
    while chunk := source.read(_READ_BYTES):
        content += chunk
        if len(content) > MAX_PAYLOAD_BYTES:
            raise Refused(
                f"the input is longer than {MAX_PAYLOAD_BYTES // 1024**2} MiB: encrypt it with a key from data-key"
            )
    return bytes(content)
