"""A root file system of our own, in which the steps of a Dockerfile run, and then the daemon.

Only this process and its children see it: /usr of the machine under a layer of its own, so that nothing is written to
the machine; /etc, read-only; a few devices, and the folder of one Python. Nothing is there of the user's, and HOME is
empty.
"""

import ctypes
import fcntl
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_NEW_MOUNTS, _NEW_NETWORK = 0x0002_0000, 0x4000_0000  # CLONE_NEWNS, CLONE_NEWNET
_SET_FLAGS, _UP = 0x8914, 0x1  # SIOCSIFFLAGS, IFF_UP
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker has it
_DEVICES = {"null": 3, "zero": 5, "random": 8, "urandom": 9}  # minor numbers of major 1


def _unshare(what: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare is there from Python 3.12 on
    if libc.unshare(what) != 0:
        why = os.strerror(ctypes.get_errno())
        sys.exit(f"unshare(2): {why}: run it as root, in a container with CAP_SYS_ADMIN")


@contextmanager
def own_mounts() -> Iterator[Path]:
    """Give an empty folder in memory, in which the machine sees no mounts of this process. Nothing of it stays."""
    _unshare(_NEW_MOUNTS)
    _mount("--make-rprivate", "/")
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    _mount("-t", "tmpfs", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", folder], check=True)
        folder.rmdir()


def use_own_network() -> None:
    """Leave the machine's network, for good, for a loopback where every port is free."""
    _unshare(_NEW_NETWORK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))


class Root:
    """A root below `folder`, which is empty, with the Python of that prefix; `environ` is what its commands get."""

    def __init__(self, folder: Path, prefix: Path, environ: Mapping[str, str]) -> None:
        self.path = folder / "root"
        self.environ = {**environ, "HOME": "/root", "PATH": f"{prefix}/bin:{_PATH}"}
        for name in ("root", "upper", "work"):
            (folder / name).mkdir(parents=True)
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", self.path)
        for name in ("usr", "proc", "dev", "root"):
            (self / name).mkdir()
        layers = f"lowerdir=/usr,upperdir={folder}/upper,workdir={folder}/work"
        _mount("-t", "overlay", "-o", layers, "overlay", self / "usr")
        _mount("--bind", "/proc", self / "proc")
        for name in ("bin", "sbin", "lib", "lib64"):  # links into /usr
            (self / name).symlink_to(os.readlink(f"/{name}"))
        for name, minor in _DEVICES.items():
            os.mknod(self / f"dev/{name}", stat.S_IFCHR, os.makedev(1, minor))
            (self / f"dev/{name}").chmod(0o666)
        (self / "dev/fd").symlink_to("/proc/self/fd")
        (self / "tmp").mkdir()
        (self / "tmp").chmod(0o1777)
        for shown in ("/etc", prefix):
            self._show(Path(shown))

    def __truediv__(self, path: "str | Path") -> Path:
        """Return where a path of the root is for us."""
        return self.path / str(path).lstrip("/")

    def _show(self, folder: Path) -> None:
        """Show a folder of the machine at its own place, to be read."""
        (self / folder).mkdir(parents=True, exist_ok=True)
        _mount("--bind", folder, self / folder)
        _mount("-o", "remount,bind,ro", self / folder)

    def seal(self, volume: str) -> None:
        """Make everything read-only but a volume, which is empty and keeps its owner and mode."""
        owner = (self / volume).stat()
        _mount("-o", "remount,bind,ro", self / "usr")
        _mount("-o", "remount,bind,ro", self.path)
        options = f"mode={stat.S_IMODE(owner.st_mode):o},uid={owner.st_uid},gid={owner.st_gid}"
        _mount("-t", "tmpfs", "-o", options, "tmpfs", self / volume)

    def command(self, *words: str, folder: str = "/", user: str = "") -> list[str]:
        """Return a command that runs in the root, as root or as a user without any privilege."""
        chroot = ["chroot", str(self.path), "env", f"--chdir={folder}"]
        if user:
            uid, gid = user.split(":")
            chroot += ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
            chroot += ["--bounding-set=-all", "--inh-caps=-all"]
        return [*chroot, *words]

    def ended(self, *words: str, user: str) -> int:
        """Run a command in the root, whatever comes of it, and return its exit code."""
        return subprocess.run(
            self.command(*words, user=user), env=self.environ, capture_output=True, check=False
        ).returncode

    def run(self, *words: str, folder: str = "/", user: str = "", **environ: str) -> str:
        """Run a command in the root, and return its standard output; if it fails, so do we, with what it said."""
        done = subprocess.run(
            self.command(*words, folder=folder, user=user),
            env=self.environ | environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout


def _mount(*words: "str | Path") -> None:
    subprocess.run(["mount", *map(str, words)], check=True)
