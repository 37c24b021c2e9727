"""Providers of OpenBao's own server, each with a transit key and a token of its own."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from aiohttp import ClientSession, web
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.providers.vault.client import VaultClient
from betrace_kms_server.providers.vault.errors import TransitKey
from betrace_kms_server.providers.vault.provider import VaultProvider
from betrace_kms_server.providers.vault.tokens import Login, Tokens

from tests.openbao_server import OpenBaoServer

DAEMON = (("encrypt/{key}", "update"), ("decrypt/{key}", "update"), ("keys/{key}", "read"), ("random/*", "update"))
"""What docs/providers/vault.md lets the daemon do."""


def make_key(server: OpenBaoServer, name: str = "", *, mount: str = "transit", **options: Any) -> str:
    """Make a transit key, AES-256-GCM unless `options` say otherwise, and return its name."""
    name = name or f"key-{secrets.token_hex(8)}"
    server.call(f"{mount}/keys/{name}", {"type": "aes256-gcm96", **options})
    return name


def token_file(server: OpenBaoServer, key: str, folder: Path, *rules: tuple[str, str], **options: Any) -> Path:
    """Write a token that may what the daemon needs of a key, or what `rules` say."""
    policy = f"daemon-{secrets.token_hex(8)}"
    server.policy(policy, *(rules or [(f"transit/{path.format(key=key)}", allowed) for path, allowed in DAEMON]))
    path = folder / "token"
    path.touch(0o600)
    path.write_text(server.token(policy, "default", no_default_policy=False, **options))
    return path


@asynccontextmanager
async def vault_provider(
    server: OpenBaoServer,
    key: str = "",
    *,
    url: str = "",
    observe: KmsObserver = unobserved,
    **options: Any,
) -> AsyncIterator[VaultProvider]:
    """Give a provider with a key, by default a new one. `url` is what is between it and the server."""
    key = key or make_key(server)
    async with AsyncExitStack() as resources:
        folder = Path(resources.enter_context(TemporaryDirectory()))
        client = await resources.enter_async_context(VaultClient(url or server.url))
        tokens = Tokens(client, Login("token", "token", None, token_file(server, key, folder)))
        resources.push_async_callback(tokens.close)
        yield VaultProvider(TransitKey("transit", key), client, tokens, observe=observe, **options)


@dataclass
class VaultProxy:
    """What is between a provider and its server. `doctor` alters the data of each good answer."""

    url: str = ""
    doctor: Callable[[dict[str, Any]], None] = lambda data: None
    reply: Callable[[str], web.Response | None] = lambda path: None
    """Answers in place of the server, given the path below /v1/."""
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def vault_proxy(server: OpenBaoServer) -> AsyncIterator[VaultProxy]:
    """Run a proxy in this event loop."""
    proxy = VaultProxy()
    async with ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            path = request.path.removeprefix("/v1/")
            proxy.requests.append(path)
            if (instead := proxy.reply(path)) is not None:
                return instead
            headers = {name: value for name, value in request.headers.items() if name.startswith("X-Vault")}
            async with session.request(
                request.method, f"{server.url}{request.path}", data=await request.read(), headers=headers
            ) as answer:
                content = await answer.read()
                status = answer.status
            if status == 200:
                found = orjson.loads(content)
                if isinstance(found.get("data"), dict):
                    proxy.doctor(found["data"])
                content = orjson.dumps(found)
            return web.Response(body=content, status=status, content_type="application/json")

        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield proxy
        finally:
            await runner.cleanup()
