"""The file of the local provider's master key: made once, and never lost, replaced or shown to others by us."""

import os
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.core.keys import KeyMaterial
from betrace_kms_server.providers.local import MASTER_KEY_FILE, LocalProvider, load_master_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the path of a master key file that is not there yet."""
    return tmp_path / MASTER_KEY_FILE


def refusal(path: Path, *, create: bool = True) -> str:
    """Return the text with which loading is refused; it must be one line."""
    with pytest.raises(StartRefused) as refused:
        load_master_key(path, create=create)
    (line,) = str(refused.value).splitlines()
    return line


def test_new_master_key_is_for_its_owner_only(path: Path) -> None:
    """A new file has mode 0600, whatever the umask allows."""
    umask = os.umask(0)
    try:
        load_master_key(path, create=True)
    finally:
        os.umask(umask)
    assert 0o600 == path.stat().st_mode & 0o7777


def test_new_master_key_leaves_nothing_else_behind(path: Path) -> None:
    """Once the file is there, no temporary file with the key is left."""
    load_master_key(path, create=True)
    assert [path] == list(path.parent.iterdir())


def test_master_key_is_the_same_when_loaded_again(path: Path) -> None:
    """A file gives the same 32 bytes every time, whether or not it might be made."""
    made = load_master_key(path, create=True)
    again, once_more = load_master_key(path, create=True), load_master_key(path, create=False)
    assert (32, made, made) == (len(made), again, once_more)


def test_same_master_key_has_the_same_arn(path: Path) -> None:
    """The ARN is derived from the key, so rows find their master key after a restart."""
    made = LocalProvider(load_master_key(path, create=True))
    assert made.master_key_arn == LocalProvider(load_master_key(path, create=False)).master_key_arn


def test_arn_does_not_show_the_master_key(path: Path) -> None:
    """The ARN stands in rows, messages and logs; it holds no part of the key."""
    key = load_master_key(path, create=True)
    arn = LocalProvider(key).master_key_arn
    assert not any(key[at : at + 4].hex() in arn for at in range(28))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666, 0o777])
def test_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    """A file that anybody else may read, write or run is refused, and the text tells how to mend it."""
    load_master_key(path, create=True)
    path.chmod(mode)
    assert f"{path} is open to others (mode {mode:04o}): run chmod 600 on it" == refusal(path)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"betrace-kms-local-v1\n", id="heading only"),
        pytest.param(b"betrace-kms-local-v2 " + b"0" * 64 + b" " + b"0" * 16 + b"\n", id="another version"),
        pytest.param(b"\x00\xff" * 50, id="rubbish"),
    ],
)
def test_rubbish_is_refused_and_left_alone(path: Path, damaged: bytes) -> None:
    """A file that is no master key is refused, not replaced."""
    path.write_bytes(damaged)
    path.chmod(0o600)
    assert "restore it from a backup" in refusal(path)
    assert damaged == path.read_bytes()


@pytest.mark.parametrize("kept", [1, 20, 21, 53, 85, 86, 94, 101])
def test_file_that_was_cut_short_is_refused_and_left_alone(path: Path, kept: int) -> None:
    """A file that lost its end, wherever it was cut, is refused and stays as it is."""
    load_master_key(path, create=True)
    cut = path.read_bytes()[:kept]
    path.write_bytes(cut)
    assert "damaged or cut short" in refusal(path)
    assert cut == path.read_bytes()


@pytest.mark.parametrize("at", [21, 50, 84, 86, 101])
def test_file_with_an_edited_digit_is_refused_and_left_alone(path: Path, at: int) -> None:
    """One other digit, in the key or in its checksum, is noticed."""
    load_master_key(path, create=True)
    edited = bytearray(path.read_bytes())
    edited[at] = ord("1") if edited[at] == ord("0") else ord("0")
    path.write_bytes(edited)
    assert "damaged or cut short" in refusal(path)
    assert edited == path.read_bytes()


def test_missing_file_is_not_made_when_it_may_not_be(path: Path) -> None:
    """With keys in the store a new master key could not open them: the file is asked back, not made anew."""
    assert "restore it from a backup" in refusal(path, create=False)
    assert not path.exists()


@pytest.mark.parametrize("create", [True, False])
def test_folder_that_cannot_be_used_is_refused(tmp_path: Path, create: bool) -> None:
    """A path that leads through something that is no folder is refused in one line that names it."""
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / MASTER_KEY_FILE
    assert str(path) in refusal(path, create=create)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_folder_without_permission_is_refused(tmp_path: Path, mode: int) -> None:
    """A folder that the daemon's user may not read, or may not write to, is refused in one line."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=mode)
    try:
        assert str(folder) in refusal(folder / MASTER_KEY_FILE)
    finally:
        folder.chmod(0o700)


def test_unreadable_file_is_refused(path: Path) -> None:
    """A file that cannot be read, here because it is a folder, is refused in one line that names it."""
    path.mkdir()
    assert f"{path} cannot be read" in refusal(path)


def test_two_creators_agree_on_one_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two daemons that make the file at once, one wins and the other takes the winner's key."""
    won: list[bytes] = []
    link = os.link

    def link_after_another(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(os, "getpid", lambda: 999_999)
        won.append(load_master_key(path, create=True))
        link(source, target)

    monkeypatch.setattr(os, "link", link_after_another)
    lost = load_master_key(path, create=True)
    assert (won, [path]) == ([lost], list(path.parent.iterdir()))


def test_creator_that_died_halfway_is_no_hindrance(path: Path) -> None:
    """What a killed daemon left behind does not stop the next one, which in a container has the same process id."""
    path.with_suffix(f".{os.getpid()}.tmp").write_bytes(b"betrace-kms-local-v1 0123")
    assert load_master_key(path, create=True) == load_master_key(path, create=False)


async def test_nonces_are_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapped key carries the 12 bytes that were drawn for it; a nonce that comes twice would break AES-GCM."""
    provider, drawn = LocalProvider(bytes(32)), list[bytes]()
    urandom = os.urandom

    def recorded(size: int) -> bytes:
        drawn.append(urandom(size))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", recorded)
    material = KeyMaterial(bytes(32))
    blobs = [(await provider.wrap(material, {})).blob for _ in range(100)]
    assert [12] * 100 == [len(nonce) for nonce in drawn]
    assert 100 == len(set(drawn))
    assert all(nonce in blob for nonce, blob in zip(drawn, blobs, strict=True))
    made = (await provider.generate_data_key(32, {})).wrapped.blob
    assert drawn[-1] in made
    assert len(drawn[-1]) == 12
