"""Providers of SoftHSM, each with a key of its own, and with a library that misbehaves as a test says."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.providers.pkcs11.keys import HsmKey, labelled
from betrace_kms_server.providers.pkcs11.process import Process, command
from betrace_kms_server.providers.pkcs11.processes import Module, Processes
from betrace_kms_server.providers.pkcs11.provider import Pkcs11Provider
from betrace_kms_server.providers.pkcs11.wraps import WrapCount

from tests.softhsm import Token


@asynccontextmanager
async def pkcs11_provider(
    token: Token,
    key: str = "",
    *,
    formers: Sequence[str] = (),
    module: Path | None = None,
    pin_file: Path | None = None,
    token_iv: bool = False,
    size: int = 1,
    call_seconds: float = 20.0,
    limit: int = 2**32,
    retry_seconds: float = 0.0,
    observe: KmsObserver = unobserved,
    processes: type[Processes] = Processes,
    **options: Any,
) -> AsyncIterator[Pkcs11Provider]:
    """Give a provider with a key, by default a new one."""
    name = HsmKey(token.label, key or token.make_key())
    with TemporaryDirectory() as folder:
        wraps = WrapCount(Path(folder) / "wraps", name.name, limit=limit)
        library = Module(module or token.module, token.label, pin_file or token.pin_file, token_iv)
        async with processes(library, size=size, call_seconds=call_seconds, retry_seconds=retry_seconds) as opened:
            yield Pkcs11Provider(
                name,
                [labelled(token.label, former) for former in formers],
                opened,
                wraps,
                calls_at_once=size,
                observe=observe,
                **options,
            )


@dataclass(frozen=True, slots=True)
class Faults:
    """A library in front of SoftHSM. `say` writes what it does wrong from now on, as pkcs11_faults.c lists."""

    module: Path
    file: Path

    def say(self, fault: str = "") -> None:
        """Misbehave, or behave again."""
        self.file.write_text(fault)


@contextmanager
def faulty(built: Path, real: Path, folder: Path) -> Iterator[Faults]:
    """Give the library, with its file in this process's environment."""
    faults = Faults(built, folder / "faults")
    faults.say()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PKCS11_REAL", str(real))
        environment.setenv("PKCS11_FAULTS", str(faults.file))
        yield faults


@dataclass(slots=True)
class Worker:
    """A process that is logged in to a token, and our end of its socket, outside of any event loop."""

    child: "subprocess.Popen[bytes]"
    socket: socket.socket

    @classmethod
    def start(cls) -> "Worker":
        """Start one."""
        ours, theirs = socket.socketpair()
        with theirs:
            return cls(subprocess.Popen(command(theirs.fileno()), pass_fds=[theirs.fileno()]), ours)

    def end(self) -> None:
        """End it."""
        self.child.kill()
        self.child.wait()
        self.socket.close()


class KeptProcess(Process):
    """One that outlives the event loop of a test: to start one for each of hundreds of tests takes too long."""

    def __init__(self, worker: Worker, idle: list[Worker], *streams: Any) -> None:
        super().__init__(Any, *streams)  # type: ignore[arg-type]  # a child that no one waits for
        self._worker = worker
        self._kept = idle

    @property
    def is_alive(self) -> bool:
        """See Process."""
        return True

    def kill(self) -> None:
        """End it indeed."""
        self._worker.end()
        self._kept = []

    async def end(self) -> None:
        """Give it to the next test."""
        self._writer.close()
        await self._writer.wait_closed()
        self._kept.append(self._worker)


class KeptProcesses(Processes):
    """Processes of one token that are kept in `idle` between tests."""

    idle: list[Worker] = []  # noqa: RUF012  # of the session

    async def _opened(self) -> Process:
        fresh = not self.idle
        worker = Worker.start() if fresh else self.idle.pop()
        streams = await asyncio.open_connection(sock=worker.socket.dup())
        process = KeptProcess(worker, self.idle, *streams)
        if fresh:
            await process.ask(self._login(self._pin()))
        self.logins["OK"] += 1
        return process


class AlteredProcesses(KeptProcesses):
    """Processes whose answers are altered: `parts` has the value of a "plaintext" or a "blob"."""

    parts: Mapping[str, str | None] = {}

    async def ask(self, request: Mapping[str, Any]) -> Any:
        """Return the answer with its parts replaced."""
        answer = await super().ask(request)
        if "plaintext" in self.parts and request["do"] in ("random", "decrypt"):
            return self.parts["plaintext"]
        if "blob" in self.parts and request["do"] == "encrypt":
            return {**answer, "ciphertext": self.parts["blob"]}
        return answer
