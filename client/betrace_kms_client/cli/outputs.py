"""Where results go: stdout, or a file that appears whole, readable by its owner only, and never through a link.

A link may lead where somebody else wants a key to be, so one that leads to a file, or to none, is refused; one that
leads to a device or pipe (/dev/stdout) is not. A file is made beside its name and then takes it: what was there, with
whatever mode and however many names, is replaced and not written into.
"""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from betrace_kms_client.cli.streams import Refused
from betrace_kms_client.new_file import new_file


def write(data: bytes, output: Path | None, *, binary: bool = False) -> None:
    """Write to a file, or to stdout. Binary data is not thrown at a terminal."""
    with writing(output, binary=binary) as file:
        file.write(data)


@contextmanager
def writing(output: Path | None, *, binary: bool = False) -> Iterator[BinaryIO]:
    """Give what a result is written to: a file that appears whole, or stdout. Binary data is not for a terminal."""
    if output is None and binary and sys.stdout.isatty():
        raise click.UsageError("the result is binary: add --output FILE, or --json")
    try:
        with replacing(output) as file:
            yield file
    except OSError as error:
        if output is None or error.filename is not None:
            raise
        raise Refused(f"{output} cannot be written: {error.strerror}") from None


@contextmanager
def replacing(output: Path | None) -> Iterator[BinaryIO]:
    """Give a file that takes its name (0600) only when everything is in it, or stdout.

    It may be the file that is being read. Devices and pipes are written as they are.
    """
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with _special(output) or _new(output) as file:
        yield file


def _special(output: Path) -> BinaryIO | None:
    """Open a device or pipe; give None if there is none with this name."""
    try:
        found = os.stat(output)
    except FileNotFoundError:
        found = None
    if found is None or stat.S_ISREG(found.st_mode):
        if output.is_symlink():
            raise Refused(f"{output} is a symbolic link: name the file that is to be written")
        return None
    file = open(os.open(output, os.O_WRONLY | os.O_NOCTTY), "wb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Refused(f"{output} became a file meanwhile: try again")
    return file


@contextmanager
def _new(output: Path) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(new_file(output))
        except OSError as error:
            raise Refused(f"cannot write to the folder of {output}: {error.strerror}") from None
        yield file
