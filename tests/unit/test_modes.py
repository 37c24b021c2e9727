"""Modes and owners of what the daemon stands on: real files, owned by others where the tests run as root."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.modes import check_file, check_folder

OTHER = 4711
Become = Callable[[int], None]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Become:
    """Let the checks take this process for one of another user."""
    return lambda uid: monkeypatch.setattr(os, "geteuid", lambda: uid)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of this user's alone."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def file(folder: Path) -> Path:
    """A file of this user's alone."""
    file = folder / "keystore.db"
    file.touch(mode=0o600)
    return file


def test_what_only_its_owner_reads_is_good(folder: Path, file: Path) -> None:
    """The owner's own modes pass, and so does a file that is not there yet, and a pipe."""
    os.mkfifo(folder / "pipe", 0o666)
    check_folder(folder)
    for path in (file, folder / "none", folder / "pipe", Path("/dev/null")):
        check_file(path)


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o740, 0o755, 0o770, 0o777, 0o1777])
def test_a_folder_that_is_open_to_others_is_refused(folder: Path, mode: int) -> None:
    """Any bit of others is too much, sticky or not."""
    folder.chmod(mode)
    with pytest.raises(StartRefused) as refusal:
        check_folder(folder)
    assert str(refusal.value) == f"{folder} is open to others (mode {mode:04o}): run chmod 700 on it"


@pytest.mark.parametrize("mode", [0o601, 0o604, 0o620, 0o640, 0o644, 0o660, 0o666])
def test_a_file_that_is_open_to_others_is_refused(file: Path, mode: int) -> None:
    """As the master key file is."""
    file.chmod(mode)
    with pytest.raises(StartRefused, match=rf"is open to others \(mode {mode:04o}\): run chmod 600 on it$"):
        check_file(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which only root may")
class TestOwners:
    """What belongs to whom."""

    def test_a_foreign_owner_is_refused(self, folder: Path, file: Path) -> None:
        """Who owns a file or folder can open it to whomever."""
        for path, check in ((file, check_file), (folder, check_folder)):
            os.chown(path, OTHER, -1)
            with pytest.raises(StartRefused, match=rf"belongs to another user \(uid {OTHER}\): run chown 0 on it"):
                check(path)

    def test_root_may_own_it(self, folder: Path, file: Path, become: Become) -> None:
        """A volume that root gave to the daemon's group, with what was restored into it."""
        folder.chmod(0o770)
        become(OTHER)
        check_folder(folder)
        check_file(file)

    @pytest.mark.parametrize(("mode", "good"), [(0o2770, True), (0o2775, True), (0o2777, True), (0o775, False)])
    def test_a_volume_of_an_fsgroup(self, folder: Path, file: Path, become: Become, mode: int, good: bool) -> None:
        """Kubernetes' own modes pass, with files that it opened to the group; never files that all can read."""
        become(OTHER)
        folder.chmod(mode)
        if not good:
            with pytest.raises(StartRefused, match="open to others"):
                check_folder(folder)
            return
        check_folder(folder)
        file.chmod(0o660)
        check_file(file)
        file.chmod(0o664)
        with pytest.raises(StartRefused, match="open to others"):
            check_file(file)

    def test_a_volume_of_another_group(self, folder: Path, file: Path, become: Become) -> None:
        """The group must be one of the process's own, and the file's as well."""
        become(OTHER)
        os.chown(file, -1, OTHER)
        folder.chmod(0o2770)
        file.chmod(0o660)
        with pytest.raises(StartRefused, match="open to others"):
            check_file(file)
        os.chown(folder, -1, OTHER)
        folder.chmod(0o2770)
        with pytest.raises(StartRefused, match="open to others"):
            check_folder(folder)

    def test_a_link_of_another_user_is_refused(self, tmp_path: Path, folder: Path, file: Path) -> None:
        """Whoever owns a link decides where it leads."""
        links = tmp_path / "folder", tmp_path / "file"
        for link, target in zip(links, (folder, file), strict=True):
            link.symlink_to(target)
            os.lchown(link, OTHER, -1)
        with pytest.raises(StartRefused, match="belongs to another user"):
            check_folder(links[0])
        with pytest.raises(StartRefused, match="belongs to another user"):
            check_file(links[1], may_be_link=True)


def test_links(tmp_path: Path, folder: Path, file: Path) -> None:
    """A folder and an audit file may be links, and are checked where they lead; a key store may not be one."""
    to_folder, to_file = tmp_path / "folder", tmp_path / "file"
    to_folder.symlink_to(folder)
    to_file.symlink_to(file)
    check_folder(to_folder)
    check_file(to_file, may_be_link=True)
    with pytest.raises(StartRefused, match="is a symbolic link: put the file itself there"):
        check_file(to_file)
    folder.chmod(0o755)
    with pytest.raises(StartRefused, match="chmod 700"):
        check_folder(to_folder)
    file.chmod(0o644)
    with pytest.raises(StartRefused, match="chmod 600"):
        check_file(to_file, may_be_link=True)
