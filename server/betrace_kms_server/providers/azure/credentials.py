"""The daemon's own token for Key Vault, by a credential of azure-identity: obtained once for all who wait, and counted.

`DefaultAzureCredential` takes what it finds: a service principal in the environment, workload identity, a managed
identity. Some of them ask services that do not answer where they are not, so it may take longer than a call may. Then
the call ends, and the next one finds the token.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from azure.core.credentials import AccessTokenInfo
from azure.core.credentials_async import AsyncSupportsTokenInfo

from betrace_kms_server.providers.azure.errors import no_token

OBTAIN_SECONDS = 60.0


class Credential:
    """Gives tokens of `credential`, which it closes. Each caller waits `wait_seconds` at most."""

    def __init__(self, credential: AsyncSupportsTokenInfo, *, wait_seconds: float) -> None:
        self.attempts: Counter[str] = Counter()
        """Attempts to obtain a token, by how they ended: OK, or the reason of the error."""
        self._credential = credential
        self._wait_seconds = wait_seconds
        self._obtaining: dict[tuple[Any, ...], asyncio.Task[AccessTokenInfo]] = {}

    async def get_token_info(self, *scopes: str, options: Mapping[str, Any] | None = None) -> AccessTokenInfo:
        """See AsyncSupportsTokenInfo. Raises CredentialsUnavailable."""
        asked = (scopes, tuple(sorted((options or {}).items())))
        task = self._obtaining.get(asked)
        if task is None:
            task = asyncio.create_task(self._obtain(scopes, options), name="obtain a token for Key Vault")
            self._obtaining[asked] = task
            task.add_done_callback(lambda task: self._over(asked, task))
        done, _ = await asyncio.wait({task}, timeout=self._wait_seconds)
        if not done:
            raise no_token("it takes long")
        try:
            return task.result()
        except Exception as cause:
            raise no_token() from cause

    async def _obtain(self, scopes: tuple[str, ...], options: Mapping[str, Any] | None) -> AccessTokenInfo:
        try:
            async with asyncio.timeout(OBTAIN_SECONDS):
                token = await self._credential.get_token_info(*scopes, options=options)  # type: ignore[arg-type]
        except Exception:
            self.attempts[no_token().reason] += 1
            raise
        self.attempts["OK"] += 1
        return token

    def _over(self, asked: tuple[Any, ...], task: "asyncio.Task[AccessTokenInfo]") -> None:
        del self._obtaining[asked]
        if not task.cancelled():
            task.exception()  # it was counted, and no one may wait for it any more

    async def close(self) -> None:
        """End an attempt that runs, and close the credential."""
        tasks = list(self._obtaining.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._credential.close()

    async def __aenter__(self) -> "Credential":
        await self._credential.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
