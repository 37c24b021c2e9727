"""The daemons that documents are about: `local` and `aws` are shared, because a start takes a second; `own` is not.

A document that locks, shreds, stops or backs up takes an own one, so that no other document notices.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.daemon import Process, spawned

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon, its data folder, and the variables with which a reader's commands find the same AWS."""

    process: Process
    data_dir: Path
    environ: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def running(data_dir: Path, environ: Mapping[str, str]) -> Iterator[Running]:
    """Run a daemon on any free port, with an audit trail in its data folder."""
    audit = f"kms.audit.file={data_dir / 'audit.log'}"
    with spawned("--data-dir", str(data_dir), "--listen", "127.0.0.1:0", "--set", audit, environ=environ) as process:
        process.wait_for("KMS is usable", 60)
        yield Running(process, data_dir, environ)


class Daemons:
    """Starts a daemon of a kind when the first document asks for it. A context manager, which ends them."""

    def __init__(self, folder: Path, moto: Callable[[], "MotoServer"]) -> None:
        self._folder = folder
        self._moto = moto
        self._running: dict[str, Running] = {}
        self._resources = ExitStack()

    def __enter__(self) -> "Daemons":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def shared(self, kind: str) -> Running:
        """Return the daemon of a kind."""
        if kind not in self._running:
            environ = self._aws() if kind == "aws" else {}
            self._running[kind] = self._resources.enter_context(running(self._folder / kind, environ))
        return self._running[kind]

    def _aws(self) -> Mapping[str, str]:
        moto = self._moto()
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_ENDPOINT_URL": moto.url,
            "AWS_PAGER": "",
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": moto.create_key(),
            "AWS_KMS_ENDPOINT": moto.url,
            "KMS_STORE_ENDPOINT": moto.url,
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
        }
