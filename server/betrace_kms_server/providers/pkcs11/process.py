"""Process: one process that holds the PKCS#11 library, seen from the daemon. worker.py is its other side."""

import asyncio
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from betrace_kms_server.providers.pkcs11.errors import Died, ModuleFault

_END_SECONDS = 2.0
_LINE_BYTES = 2**20


def command(descriptor: int) -> Sequence[str]:
    """Return what starts a process, given the number of its end of the socket pair."""
    return sys.executable, "-P", "-m", "betrace_kms_server.providers.pkcs11.worker", str(descriptor)


class Process:
    """A process, and our end of its socket pair. It answers one request at a time."""

    def __init__(
        self, child: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._child = child
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls) -> Self:
        """Start a process, in a session of its own: Ctrl-C is for the daemon alone. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = await asyncio.create_subprocess_exec(
                    *command(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,  # some libraries print
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES)
        return cls(child, reader, writer)

    @property
    def is_alive(self) -> bool:
        """Return whether it runs, as far as is known."""
        return self._child.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def ask(self, request: Mapping[str, Any]) -> Any:
        """Return the answer. Raises ModuleFault, or Died if there is none."""
        try:
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
            line = await self._reader.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise Died(await self._code())
        answer = json.loads(line)
        if "fault" in answer:
            raise ModuleFault(answer["fault"], answer["detail"])
        return answer["answer"]

    def kill(self) -> None:
        """End it at once, whatever it does."""
        with suppress(ProcessLookupError):
            self._child.kill()

    async def end(self) -> None:
        """Let it log out, and kill it if that takes long. One that the kernel does not end is left behind."""
        self._writer.close()
        if await self._code() is None:
            self.kill()
            await self._code()

    async def _code(self) -> int | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                return await self._child.wait()
        return None
