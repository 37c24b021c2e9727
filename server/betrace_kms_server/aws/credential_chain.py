"""The SDK's own chain of credential sources: environment, files, web identity (IRSA), containers, instance metadata.

botocore resolves it once for a session and keeps what it read. Each `load` here is a new session, so files are read
anew, and differs from botocore in this:

- STS is asked in the daemon's Region. Without one, botocore asks the global endpoint, which is in us-east-1 only.
- A `credential_process` that is given up is killed with its whole process group, and reaped; and its output is bounded.
- The SDK's own data, such as its model of STS, is read once. To read it for each attempt doubled how long one held the
  event loop, and a source that fails is asked every two seconds.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiobotocore.credentials import AioAssumeRoleProvider, AioProcessProvider, create_credential_resolver
from aiobotocore.session import AioSession, get_session
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError
from botocore.loaders import Loader

from betrace_kms_server.aws.tls import VerifyingConfig

_MAX_OUTPUT_BYTES = 64 * 1024
_REAP_SECONDS = 1.0
_STS_ATTEMPTS = 2
"""More would outlast the bound on the whole, and hide what STS answers."""
_PART = re.compile(r"[!-~]+")

Fingerprint = tuple[tuple[int, ...] | None, ...]


class MalformedCredentials(Exception):
    """A source gave something that no request can be signed with. Holds nothing of it."""


class CredentialChain:
    """Loads the daemon's credentials; STS is asked in `region`."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._files: tuple[Path, ...] | None = None
        self._children: list[_Child] = []
        self._sdk_data: Loader | None = None

    def fingerprint(self) -> Fingerprint:
        """Return what changes when one of the files is rewritten or replaced: one stat each."""
        if self._files is None:
            session = get_session()
            names = map(session.get_config_variable, ("credentials_file", "config_file"))
            self._files = tuple(Path(name).expanduser() for name in names if name)
        return tuple(map(_identity, self._files))

    async def load(self) -> Any:
        """Return what the first source that has credentials gave: an SDK object that may be able to renew itself.

        Raises what the SDK raises, and NoCredentialsError if no source has any.
        """
        session = get_session()
        self._sdk_data = self._sdk_data or session.get_component("data_loader")
        session.register_component("data_loader", self._sdk_data)
        session.set_config_variable("sts_regional_endpoints", "regional")
        session.set_default_client_config(VerifyingConfig())
        session.set_config_variable("retry_mode", "standard")
        session.set_config_variable("max_attempts", _STS_ATTEMPTS)
        async with self._children_ended():
            found = await self._resolver(session).load_credentials()
        if found is None:
            raise NoCredentialsError
        return found

    async def frozen(self, found: Any) -> ReadOnlyCredentials:
        """Return the values to sign with, renewed if that is due. Raises what the SDK raises."""
        async with self._children_ended():
            frozen: ReadOnlyCredentials = await found.get_frozen_credentials()
        parts = (frozen.access_key, frozen.secret_key, *([] if frozen.token is None else [frozen.token]))
        if not all(isinstance(part, str) and _PART.fullmatch(part) for part in parts):
            raise MalformedCredentials("access key, secret key or session token is missing or malformed")
        return frozen

    def _resolver(self, session: AioSession) -> Any:
        def process_provider(profile_name: str) -> AioProcessProvider:
            return AioProcessProvider(
                profile_name=profile_name, load_config=lambda: session.full_config, popen=self._spawn
            )

        resolver = create_credential_resolver(session, region_name=self._region)
        for provider in resolver.providers:
            if isinstance(provider, AioProcessProvider):
                provider._popen = self._spawn
            elif isinstance(provider, AioAssumeRoleProvider):  # its source profile may name a process, too
                provider._profile_provider_builder._create_process_provider = process_provider
        return resolver

    async def _spawn(self, *command: str, **pipes: Any) -> "_Child":
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True, **pipes
        )
        child = _Child(process)
        self._children.append(child)
        return child

    @asynccontextmanager
    async def _children_ended(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            for child in self._children:
                await child.kill()
            raise
        finally:
            self._children.clear()


class _Child:
    """A process in the place of asyncio's, as far as botocore uses it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Return what the process wrote. Raises MalformedCredentials if it is too much to be credentials."""
        try:
            async with asyncio.TaskGroup() as reading:
                output = reading.create_task(_bounded(self._process.stdout))
                errors = reading.create_task(_bounded(self._process.stderr))
        except* MalformedCredentials as group:
            raise MalformedCredentials(str(group.exceptions[0])) from None
        await self._process.wait()
        return output.result(), errors.result()

    async def kill(self) -> None:
        """Kill the process and all that it started, and reap it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process._transport.close()  # type: ignore[attr-defined]  # closes pipes that a stray child may hold
        with suppress(TimeoutError):
            async with asyncio.timeout(_REAP_SECONDS):
                await self._process.wait()


async def _bounded(stream: asyncio.StreamReader | None) -> bytes:
    content = bytearray()
    while stream is not None and (piece := await stream.read(_MAX_OUTPUT_BYTES)):
        content += piece
        if len(content) > _MAX_OUTPUT_BYTES:
            raise MalformedCredentials(f"credential_process writes more than {_MAX_OUTPUT_BYTES} bytes")
    return bytes(content)


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
