"""What a daemon that identifies its callers does not start with: loose files, links, addresses open to others."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import spawned
from tests.integration.callers import FIRST, STRANGER, needs_root, refused_start, set_mode, token_at


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o640, 0o644, 0o660, 0o666, 0o777])
async def test_refused_loose_mode_of_a_token_file(tmp_path: Path, mode: int) -> None:
    """Nobody but the owner may read or write it, unless a group was named."""
    path = token_at(tmp_path / "token", mode)
    assert "is open to others" in await refused_start(tmp_path, f"kms.server.token-file={path}")


@pytest.mark.parametrize("mode", [0o660, 0o644, 0o642])
async def test_refused_loose_mode_with_a_group(tmp_path: Path, mode: int) -> None:
    """The group may read, and not write; others may nothing."""
    path = token_at(tmp_path / "token", mode)
    group = f"kms.server.token-group={os.getegid()}"
    assert "is open to others" in await refused_start(tmp_path, f"kms.server.token-file={path}", group)


@needs_root
async def test_refused_token_file_of_another_group(tmp_path: Path) -> None:
    """A file that a group may read is that group's which the settings name."""
    path = token_at(tmp_path / "token", 0o640)
    os.chown(path, -1, STRANGER)
    said = await refused_start(tmp_path, f"kms.server.token-file={path}", "kms.server.token-group=12345")
    assert f"can be read by group {STRANGER}" in said


def _link_file(folder: Path) -> Path:
    (folder / "link").symlink_to(token_at(folder / "token"))
    return folder / "link"


def _link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "absent")
    return folder / "link"


def _open_folder(folder: Path) -> Path:
    path = token_at(folder / "open" / "token")
    path.parent.chmod(0o777)
    return path


def _group_folder(folder: Path) -> Path:
    path = token_at(folder / "open" / "token")
    path.parent.chmod(0o770)
    return path


def _folder_of_another(folder: Path) -> Path:
    path = token_at(folder / "foreign" / "token")
    os.chown(path.parent, STRANGER, STRANGER)
    return path


def _file_of_another(folder: Path) -> Path:
    path = token_at(folder / "token")
    os.chown(path, STRANGER, -1)
    return path


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "token", 0o600)
    return folder / "token"


def _folder(folder: Path) -> Path:
    (folder / "token").mkdir(0o700)
    return folder / "token"


def _content(content: str) -> Callable[[Path], Path]:
    return lambda folder: token_at(folder / "token", content=content)


BAD_TOKEN_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "symbolic link": (_link_file, "is a symbolic link"),
    "symbolic link to nothing": (_link_to_nothing, "is a symbolic link"),
    "folder that others write": (_open_folder, "can be written by others"),
    "folder that a group writes": (_group_folder, "can be written by others"),
    "FIFO": (_fifo, "is no regular file"),
    "folder in its place": (_folder, "is no regular file"),
    "empty": (_content(""), "holds 0 tokens"),
    "comments only": (_content("# none yet"), "holds 0 tokens"),
    "short": (_content("secret"), "a token has 32 to 256"),
    "long": (_content("a" * 257), "a token has 32 to 256"),
    "non-ASCII": (_content(FIRST + "é"), "is not ASCII text"),
    "quotes": (_content(f'"{FIRST}"'), "a token has 32 to 256"),
    "header": (_content(f"authorization: Bearer {FIRST}"), "write TOKEN or NAME TOKEN"),
    "reserved name": (_content(f"admin {FIRST}"), "is the daemon's own"),
    "bad name": (_content(f"spiffe://a/b {FIRST}"), "an identity has 1 to 63"),
    "one token, two names": (_content(f"a {FIRST}\nb {FIRST}"), "under another name"),
    "65 tokens": (_content("\n".join(secrets.token_urlsafe(32) for _ in range(65))), "holds 65 tokens"),
}
if os.geteuid() == 0:
    BAD_TOKEN_FILES["file of another user"] = (_file_of_another, f"belongs to user {STRANGER}")
    BAD_TOKEN_FILES["folder of another user"] = (_folder_of_another, f"belongs to user {STRANGER}")


@pytest.mark.parametrize("case", BAD_TOKEN_FILES)
async def test_refused_bad_token_file(tmp_path: Path, case: str) -> None:
    """The start is refused with what to fix, and without the token."""
    make, text = BAD_TOKEN_FILES[case]
    said = await refused_start(tmp_path, f"kms.server.token-file={make(tmp_path)}")
    assert text in said
    assert FIRST not in said


@pytest.mark.parametrize(
    ("listen", "text"),
    [
        ("unix:{}/kms.sock;identity=a;mode=0666", "must be 0600 or 0660"),
        ("unix:{}/kms.sock;identity=a;mode=0777", "must be 0600 or 0660"),
        ("unix:{}/kms.sock;mode=0602", "must be 0600 or 0660"),
        ("unix:{}/kms.sock;identity=admin", "is the daemon's own"),
        ("unix:{}/kms.sock;identity=daemon", "is the daemon's own"),
        ("unix:{}/kms.sock;identity=", "an identity has 1 to 63"),
        ("unix:{}/kms.sock;identity=spiffe://a/b", "an identity has 1 to 63"),
        ("unix:{}/kms.sock;identity=a;identity=b", "is given twice"),
        ("unix:{}/kms.sock;group=0", "needs ;mode=0660"),
        ("unix:{}/kms.sock;mode=0660;group=no-such-group", "there is no group"),
        ("unix:{}/kms.sock;user=0", "is no option of a unix socket"),
        ("0.0.0.0:0", "can be reached from other machines"),
        ("[::]:0", "can be reached from other machines"),
        ("127.0.0.1:0;identity=a", "is no address"),
    ],
)
async def test_refused_listen_address(tmp_path: Path, listen: str, text: str) -> None:
    """An address that would let in everybody, or whose option is not known, is refused."""
    assert text in await refused_start(tmp_path, listen=listen.format(tmp_path))


async def test_refused_socket_in_a_folder_that_others_write(tmp_path: Path) -> None:
    """Others could put a socket of theirs in the place of ours."""
    set_mode(tmp_path, 0o777)
    assert "can be written by others" in await refused_start(tmp_path, listen=f"unix:{tmp_path}/kms.sock;identity=a")
    set_mode(tmp_path, 0o1777)  # as /tmp is
    with spawned("--data-dir", f"{tmp_path}/data", "--listen", f"unix:{tmp_path}/kms.sock;identity=a") as process:
        process.wait_for("serving")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/kms.sock", "unix:{}/a.sock;identity=a,127.0.0.1:0"])
async def test_refused_start_where_identity_is_required(tmp_path: Path, listen: str) -> None:
    """One address without identity is enough, and the three ways to change that are named."""
    said = await refused_start(tmp_path, "kms.server.require-identity=true", listen=listen.format(tmp_path))
    assert "callers are not authenticated at" in said
    assert all(way in said for way in ("identity=NAME", "kms.server.token-file", "kms.server.tls.cert-file"))
