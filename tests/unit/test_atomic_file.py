"""A file that is made whole or not at all is durable before it has its name, and its name is durable after."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.host.atomic_file import atomic_create


def test_content_and_then_the_name_are_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is: fsync of the file's whole content, link, fsync of the folder that has the name by then."""
    path, done = tmp_path / "key", list[object]()
    fsync, link = os.fsync, os.link

    def recorded_fsync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            assert os.path.samestat(state, tmp_path.stat())
            done.append(("folder", path.exists()))
        else:
            done.append(("file", os.pread(descriptor, 100, 0)))
        fsync(descriptor)

    def recorded_link(*arguments: Any) -> None:
        done.append("link")
        link(*arguments)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "link", recorded_link)
    with atomic_create(path) as new:
        new.write_bytes(b"content")
    assert [("file", b"content"), "link", ("folder", True)] == done


def test_content_that_cannot_be_made_durable_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fsync fails, nothing is left."""

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"), atomic_create(tmp_path / "key") as new:
        new.write_bytes(b"content")
    assert [] == list(tmp_path.iterdir())
