"""Processes: a few processes that hold the PKCS#11 library and a session each, started when they are needed.

A process that hangs past its time is killed, one that crashed is gone, and one whose session went away is ended: the
next request starts another, which finds the token anew. A request that met such a session is made once more: all of
ours may be repeated.

Tokens lock a PIN after a few wrong tries. So processes log in one after the other, and a PIN that the token refused is
not tried again, whatever starts, until the file holds another one.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from betrace_kms_server.core.errors import CredentialsUnavailable, KmsUnreachable
from betrace_kms_server.host.trusted_files import Untrusted, read_trusted
from betrace_kms_server.providers.pkcs11.errors import (
    PIN_REFUSED,
    Died,
    ModuleFault,
    is_stale,
    pin_refused,
    pin_unread,
)
from betrace_kms_server.providers.pkcs11.process import Process

log = structlog.get_logger()

OPEN_SECONDS = 10.0
"""For a process to start, to load the library and to log in, and to wait for others that do."""
_GROUP_READS = 0o040


@dataclass(frozen=True, slots=True)
class Module:
    """The library, and how a session on its token is opened. With `token_iv`, the token makes the IVs."""

    path: Path
    token: str
    pin_file: Path
    token_iv: bool = False


class Processes:
    """Keeps at most `size` processes, beside one for checks. An async context manager, which ends them.

    `call_seconds` bounds a request; a process that has to be opened for it takes up to OPEN_SECONDS more. If one
    cannot be opened, none is tried for `retry_seconds`: who asks meanwhile gets the same fault. `clock` is monotonic.
    """

    def __init__(
        self,
        module: Module,
        *,
        size: int,
        call_seconds: float,
        retry_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.logins: Counter[str] = Counter()
        """Attempts to log in, by how they ended: OK, or the reason of the error."""
        self._module = module
        self._kept = size + 1
        self._call_seconds = call_seconds
        self._idle: list[Process] = []
        self._opening = asyncio.Lock()
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._failure: tuple[float, ModuleFault] | None = None
        self._refused_pin = ""
        self._ends: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._kept = 0
        self.renew()
        await asyncio.gather(*self._ends)

    async def ask(self, request: Mapping[str, Any]) -> Any:
        """Return the answer to a request.

        Raises ModuleFault, Died, TimeoutError, OSError where no process can be started, and CredentialsUnavailable
        where there is no PIN to try.
        """
        while self._idle:
            process = self._idle.pop()
            if not process.is_alive:
                self._end(process)
                continue
            try:
                return await self._asked(process, request)
            except ModuleFault as fault:
                if not is_stale(fault, request["do"]):
                    raise
            self.renew()
        async with asyncio.timeout(OPEN_SECONDS), self._opening:
            process = await self._opened()
        return await self._asked(process, request)

    def renew(self) -> None:
        """End the processes that wait: what is asked next finds the token anew."""
        while self._idle:
            self._end(self._idle.pop())

    async def _asked(self, process: Process, request: Mapping[str, Any]) -> Any:
        """Ask a process, and keep it if it may serve again."""
        keep = False
        try:
            async with asyncio.timeout(self._call_seconds):
                answer = await process.ask(request)
            keep = True
            return answer
        except ModuleFault as fault:
            keep = not is_stale(fault, request["do"])
            raise
        except Died as death:
            log.warning("The process of the PKCS#11 library ended", pid=process.pid, exit_code=death.code)
            raise
        except BaseException:  # it hangs, or the caller is gone and its answer would be taken for another's
            process.kill()
            raise
        finally:
            if keep and len(self._idle) < self._kept:
                self._idle.append(process)
            else:
                self._end(process)

    async def _opened(self) -> Process:
        pin = self._pin()
        if self._failure is not None and self._clock() < self._failure[0]:
            raise ModuleFault(*self._failure[1].args)
        process = await Process.start()
        try:
            await process.ask(self._login(pin))
        except ModuleFault as fault:
            self._end(process)
            if fault.name in PIN_REFUSED:
                self._refused_pin = pin
            self._failure = self._clock() + self._retry_seconds, fault
            self.logins[CredentialsUnavailable.reason if "Pin" in fault.name else KmsUnreachable.reason] += 1
            raise
        except BaseException:
            process.kill()
            self._end(process)
            raise
        self.logins["OK"] += 1
        return process

    def _login(self, pin: str) -> Mapping[str, Any]:
        module = self._module
        return {
            "do": "open",
            "module": str(module.path),
            "token": module.token,
            "pin": pin,
            "token_iv": module.token_iv,
        }

    def _pin(self) -> str:
        path = self._module.pin_file
        try:
            content, _ = read_trusted(path, readers=_GROUP_READS, follow=True)
            pin = content.decode().rstrip("\r\n")
        except Untrusted as cause:
            raise pin_unread(str(cause)) from cause
        except UnicodeDecodeError as cause:
            raise pin_unread(f"{path} is not UTF-8") from cause
        if not pin or "\n" in pin:
            raise pin_unread(f"{path} holds no PIN: write it there, in one line")
        if pin == self._refused_pin:
            raise pin_refused()
        return pin

    def _end(self, process: Process) -> None:
        task = asyncio.create_task(process.end(), name="end a process of the PKCS#11 library")
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
