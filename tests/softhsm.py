"""SoftHSM, an HSM in software, from Debian's packages (make softhsm): its tokens, and keys made by pkcs11-tool."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.tools import ROOT, tool

_INSTALLED = (ROOT / ".tools/softhsm/libsofthsm2.so", Path("/usr/lib/softhsm/libsofthsm2.so"))
_SO_PIN = "87654321"
MASTER_KEY = ("--key-type", "AES:32", "--sensitive", "--private", "--usage-decrypt")
"""Options of pkcs11-tool for a master key, as docs/providers/pkcs11.md gives them."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token with a user's PIN, in a file as the daemon reads it."""

    module: Path
    label: str
    pin: str
    pin_file: Path
    folder: Path
    """Where SoftHSM keeps it."""

    def make_key(self, label: str = "", *options: str) -> str:
        """Make a key, a master key unless `options` say otherwise, and return its label."""
        label = label or f"key-{secrets.token_hex(4)}"
        self.run("--keygen", *(options or MASTER_KEY), "--label", label)
        return label

    def run(self, *arguments: str) -> str:
        """Run pkcs11-tool, logged in."""
        given = ["--module", str(self.module), "--token-label", self.label, "--login", "--pin", self.pin]
        done = subprocess.run(
            [tool("pkcs11-tool"), *given, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """The library, and a folder of tokens."""

    module: Path
    folder: Path

    def make_token(self, label: str = "") -> Token:
        """Make a token with a label and a PIN of its own."""
        label, pin = label or f"token-{secrets.token_hex(4)}", secrets.token_hex(8)
        before = set(self._tokens())
        given = ["--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", _SO_PIN]
        subprocess.run(
            [tool("softhsm2-util"), "--module", str(self.module), *given],
            capture_output=True,
            check=True,
            timeout=30,
        )
        (folder,) = set(self._tokens()) - before
        pin_file = self.folder / f"{label}.pin"
        pin_file.touch(0o600)
        pin_file.write_text(f"{pin}\n")
        return Token(self.module, label, pin, pin_file, folder)

    def _tokens(self) -> Iterator[Path]:
        return (self.folder / "tokens").iterdir()


def library() -> Path:
    """Return the path of SoftHSM's library; skip the test if there is none, or fail it in CI."""
    found = next((path for path in _INSTALLED if path.exists()), None)
    if found is None:
        missing = "SoftHSM is not installed: make softhsm unpacks Debian's"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return found


@contextmanager
def softhsm(folder: Path) -> Iterator[SoftHsm]:
    """Give a SoftHSM whose configuration is in this process's environment, and so in that of what it starts."""
    module = library()
    (folder / "tokens").mkdir(parents=True)
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOFTHSM2_CONF", str(config))
        yield SoftHsm(module, folder)


def build_faults(folder: Path) -> Path:
    """Build the library of pkcs11_faults.c, which misbehaves as a file says."""
    built = folder / "libfaults.so"
    source = ROOT / "tests/pkcs11_faults.c"
    subprocess.run(
        [tool("cc", "gcc", "clang"), "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"], check=True, timeout=60
    )
    return built
