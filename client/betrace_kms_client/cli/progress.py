"""A progress bar on stderr, where that is a terminal and the size of the input is known."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click


@contextmanager
def progress_of(source: BinaryIO, done: int) -> Iterator[Callable[[int], None]]:
    """Give what to tell how many more bytes of an input were read; `done` were before."""
    size = _size(source)
    with click.progressbar(length=size or 1, file=sys.stderr, hidden=size is None or not sys.stderr.isatty()) as bar:
        bar.update(done)
        yield bar.update


def _size(source: BinaryIO) -> int | None:
    state = os.fstat(source.fileno())
    return state.st_size if stat.S_ISREG(state.st_mode) else None
