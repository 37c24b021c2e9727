"""A file that a verb of the server makes: whole or not at all, for its owner only, and never in place of another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from betrace_kms_server.cli.settings_options import Refusal
from betrace_kms_server.host.atomic_file import atomic_create


@contextmanager
def new_file(path: Path, what: str) -> Iterator[Path]:
    """Give a file to fill that becomes `path` in the end. Raises Refusal, which calls it by `what` it is."""
    if os.path.lexists(path):
        raise Refusal(f"{path} exists, and {what} replaces no file")
    try:
        with atomic_create(path) as new:
            yield new
            made = new.stat()
        if not os.path.samestat(made, path.stat()):
            raise Refusal(f"{path} was made by somebody else meanwhile")
    except OSError as cause:
        raise Refusal(f"{path} cannot be written: {cause.strerror}") from cause
