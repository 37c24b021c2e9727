"""Azure Key Vault, Managed HSM and the token endpoint of Entra ID for tests: their documented REST APIs over TLS.

It answers as the services do to what the daemon asks: challenges, tokens, keys and their versions, wrapKey, unwrapKey,
encrypt, decrypt and sign with real keys, roles, firewalls, throttling. Names are those of the services, which a proxy
(`proxy_url`) or a resolver (`session`) leads here, so callers are configured as in production.

As in the service, a key that is disabled still wraps and encrypts, and only unwrapKey, decrypt and sign are refused.
"""

import asyncio
import json
import re
import secrets
import socket
import ssl
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.authority import Authority

TENANT, CLIENT, SECRET = (
    "5d1c4a52-8b1f-4d6c-9a43-0c3f2f6b7a10",
    "f0e1d2c3-0000-4000-8000-a1b2c3d4e5f6",
    "s3cret-of-tests",
)
VAULT, HSM = "https://betrace.vault.azure.net", "https://betrace.managedhsm.azure.net"
_LOGIN = "login.microsoftonline.com"
_AUDIENCES = {"vault": "https://vault.azure.net", "managedhsm": "https://managedhsm.azure.net"}
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_OPERATIONS = {
    "RSA": ("encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"),
    "EC": ("sign", "verify"),
    "oct": ("encrypt", "decrypt", "wrapKey", "unwrapKey"),
}
_CURVES: Mapping[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
_NOT_WHEN_DISABLED = frozenset({"unwrapkey", "decrypt", "sign"})
_CONNECT = re.compile(rb"CONNECT ([a-z0-9.-]+):443 HTTP/1\.[01]\r\n")


class Refused(Exception):
    """An answer that is an error, or `text` in its place."""

    def __init__(self, status: int, code: str = "", inner: str = "", text: str = "", **headers: str) -> None:
        super().__init__(code)
        error: dict[str, Any] = {"code": code, "message": "A text of the service that names appid=secret-principal"}
        if inner:
            error["innererror"] = {"code": inner}
        self._status, self._headers = status, headers
        self._text = text or json.dumps({"error": error})

    def response(self) -> web.Response:
        """Return the answer, or what a proxy put in its place."""
        return web.Response(status=self._status, headers=self._headers, text=self._text)


@dataclass
class Version:
    """A version of a key."""

    material: Any = field(repr=False)
    enabled: bool = True
    more: dict[str, Any] = field(default_factory=dict)
    """Further attributes, such as exp."""


@dataclass
class Key:
    """A key with its versions, the current one last."""

    id: str
    kty: str
    options: Mapping[str, Any]
    operations: tuple[str, ...]
    versions: dict[str, Version] = field(default_factory=dict)
    deleted: bool = False

    @property
    def current(self) -> Version:
        """The version that serves where none is named."""
        return list(self.versions.values())[-1]

    @property
    def current_id(self) -> str:
        """Its id with its current version."""
        return f"{self.id}/{list(self.versions)[-1]}"


@dataclass
class KeyVaultServer:
    """The servers. `fault` answers in place of an operation, `delay` and `doctor` delay and alter answers."""

    ca: Path
    tls_port: int = 0
    proxy_url: str = ""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request of a caller that is authenticated."""
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Ids of keys with operations that no role allows, "get" for reading."""
    federated: str = "the assertion of a pod"
    fault: Callable[[str], Refused | None] = lambda path: None
    delay: Callable[[str], float] = lambda path: 0.0
    doctor: Callable[[str, dict[str, Any]], None] = lambda path, body: None
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    token_lifetime: int = 3600
    _keys: dict[str, Key] = field(default_factory=dict)
    _material: dict[tuple[Any, ...], list[Any]] = field(default_factory=dict, repr=False)
    _count: Iterator[int] = field(default_factory=count)

    def create_key(self, kty: str = "RSA", *, vault: str = VAULT, name: str = "", **options: Any) -> Key:
        """Make a key, and return it. Options are `size`, `curve`, `operations`, and parts of the bundle."""
        name = name or f"key-{secrets.token_hex(8)}"
        operations = options.pop("operations", _OPERATIONS[kty.removesuffix("-HSM")])
        key = Key(f"{vault}/keys/{name}", kty, options, operations)
        self._keys[key.id.lower()] = key
        self.rotate(key)
        return key

    def rotate(self, key: Key) -> None:
        """Make a new version."""
        key.versions[secrets.token_hex(16)] = Version(self._new_material(key))

    def _new_material(self, key: Key) -> Any:
        """RSA keys take a while to make, so four of each size serve in turn."""
        size = key.options.get("size", 2048)
        if key.kty.startswith("EC"):
            return ec.generate_private_key(_CURVES[key.options.get("curve", "P-256")])
        if key.kty.startswith("oct"):
            return secrets.token_bytes(key.options.get("size", 256) // 8)
        pool = self._material.setdefault(("RSA", size), [])
        if len(pool) < 4:
            pool.append(rsa.generate_private_key(65537, size))
            return pool[-1]
        return pool[next(self._count) % len(pool)]

    def session(self, *, trusts: bool = True) -> ClientSession:
        """Return an HTTP session, as the SDK makes its own, whose names lead here."""
        context = ssl.create_default_context(cafile=self.ca if trusts else None)
        connector = TCPConnector(resolver=_Resolver(self.tls_port), ssl=context)
        return ClientSession(connector=connector, cookie_jar=DummyCookieJar(), auto_decompress=False)

    def environment(self, federated_token: Path) -> dict[str, str]:
        """Return what a pod with workload identity has, and the way here."""
        federated_token.write_text(self.federated)
        return {
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_FEDERATED_TOKEN_FILE": str(federated_token),
            "HTTPS_PROXY": self.proxy_url,
            "SSL_CERT_FILE": str(self.ca),
        }

    async def token(self, request: web.Request) -> web.Response:
        """Answer the token endpoint (OAuth 2.0 client credentials)."""
        form = await request.post()
        secret, assertion = form.get("client_secret"), form.get("client_assertion")
        known = secret == SECRET or assertion == self.federated
        if request.match_info["tenant"] != TENANT or form.get("client_id") != CLIENT or not known:
            answer = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}
            return web.json_response(answer, status=401)
        token = secrets.token_urlsafe(32)
        self.tokens[token] = str(form["scope"]).removesuffix("/.default")
        granted = {"token_type": "Bearer", "expires_in": self.token_lifetime, "access_token": token}
        return web.json_response(granted)

    async def vault(self, request: web.Request) -> web.Response:
        """Answer a vault."""
        host = request.host.partition(":")[0]
        try:
            self._authenticate(request, host)
            path = request.path
            self.requests.append(f"{request.method} {path}")
            await asyncio.sleep(self.delay(path))
            if (instead := self.fault(path)) is not None:
                raise instead
            body = self._answer(request, host, await request.read() and await request.json())
        except Refused as refused:
            return refused.response()
        self.doctor(path, body)
        return web.json_response(body, headers={"x-ms-request-id": secrets.token_hex(16)})

    def _authenticate(self, request: web.Request, host: str) -> None:
        audience = _AUDIENCES[host.split(".")[1]]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens.get(token) != audience:
            challenge = f'Bearer authorization="https://{_LOGIN}/{TENANT}", resource="{audience}"'
            raise Refused(401, "Unauthorized", **{"WWW-Authenticate": challenge})
        if "api-version" not in request.query:
            raise Refused(400, "BadParameter")

    def _answer(self, request: web.Request, host: str, body: Any) -> dict[str, Any]:
        _, collection, name, *rest = request.path.split("/")
        version, operation = (*rest, "", "")[:2]
        key = self._keys.get(f"https://{host}/keys/{name}".lower())
        if collection != "keys" or key is None or key.deleted or (version and version not in key.versions):
            raise Refused(404, "KeyNotFound")
        version = version or list(key.versions)[-1]
        found, kid = key.versions[version], f"{key.id}/{version}"
        if (key.id, operation or "get") in self.denied:
            raise Refused(403, "Forbidden", "ForbiddenByRbac")
        if request.method == "GET" and not operation:
            return self._bundle(key, found, kid)
        if not found.enabled and operation in _NOT_WHEN_DISABLED:
            raise Refused(403, "Forbidden", "KeyDisabled")
        if operation not in (each.lower() for each in key.operations):
            raise Refused(403, "Forbidden", "KeyOperationForbidden")
        try:
            return {"kid": kid, **_OPERATE[operation](key.kty, found.material, body)}
        except (KeyError, ValueError, TypeError, InvalidTag):
            raise Refused(400, "BadParameter") from None

    def _bundle(self, key: Key, version: Version, kid: str) -> dict[str, Any]:
        jwk: dict[str, Any] = {"kid": kid, "kty": key.kty, "key_ops": list(key.operations)}
        if key.kty.startswith("RSA"):
            numbers = version.material.public_key().public_numbers()
            jwk |= {"n": _b64(_integer(numbers.n)), "e": _b64(_integer(numbers.e))}
        elif key.kty.startswith("EC"):
            point, size = version.material.public_key().public_numbers(), (version.material.key_size + 7) // 8
            x, y = (_b64(number.to_bytes(size, "big")) for number in (point.x, point.y))
            jwk |= {"crv": key.options.get("curve", "P-256"), "x": x, "y": y}
        attributes = {
            "enabled": version.enabled,
            "created": int(time.time()),
            "recoveryLevel": key.options.get("recovery", "Recoverable"),
            "exportable": key.options.get("exportable", False),
            **version.more,
        }
        return {"key": jwk, "attributes": attributes}


class _Resolver(AbstractResolver):
    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=self._port, family=family, proto=0, flags=0)]

    async def close(self) -> None: ...


def _b64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _integer(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _needs(condition: bool) -> None:
    if not condition:
        raise ValueError


def _wrap(kty: str, key: Any, body: Any) -> dict[str, str]:
    _needs(kty.startswith("RSA") and body["alg"] == "RSA-OAEP-256")
    return {"value": _b64(key.public_key().encrypt(_raw(body["value"]), OAEP))}


def _unwrap(kty: str, key: Any, body: Any) -> dict[str, str]:
    _needs(kty.startswith("RSA") and body["alg"] == "RSA-OAEP-256")
    return {"value": _b64(key.decrypt(_raw(body["value"]), OAEP))}


def _encrypt(kty: str, key: Any, body: Any) -> dict[str, str]:
    _needs(kty == "oct-HSM" and body["alg"] == "A256GCM" and len(key) == 32 and "iv" not in body)
    iv = secrets.token_bytes(12)
    sealed = AESGCM(key).encrypt(iv, _raw(body["value"]), _raw(body["aad"]))
    return {"value": _b64(sealed[:-16]), "tag": _b64(sealed[-16:]), "iv": _b64(iv), "aad": body["aad"]}


def _decrypt(kty: str, key: Any, body: Any) -> dict[str, str]:
    _needs(kty == "oct-HSM" and body["alg"] == "A256GCM" and len(key) == 32)
    sealed = _raw(body["value"]) + _raw(body["tag"])
    return {"value": _b64(AESGCM(key).decrypt(_raw(body["iv"]), sealed, _raw(body["aad"])))}


def _sign(kty: str, key: Any, body: Any) -> dict[str, str]:
    _needs(kty.startswith("EC") and body["alg"] == "ES256" and key.key_size == 256)
    r, s = decode_dss_signature(key.sign(_raw(body["value"]), ec.ECDSA(Prehashed(hashes.SHA256()))))
    return {"value": _b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))}


_OPERATE: Mapping[str, Callable[[str, Any, Any], dict[str, str]]] = {
    "wrapkey": _wrap,
    "unwrapkey": _unwrap,
    "encrypt": _encrypt,
    "decrypt": _decrypt,
    "sign": _sign,
}


@contextmanager
def key_vault_server(folder: Path) -> Iterator[KeyVaultServer]:
    """Run the servers in a thread of their own."""
    authority = Authority()
    pair = authority.issue(host=("*.vault.azure.net", "*.managedhsm.azure.net", _LOGIN))
    chain, key = pair.write(folder)
    ca = folder / "ca.pem"
    ca.write_bytes(authority.pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    server, loop, ready = KeyVaultServer(ca), asyncio.new_event_loop(), threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/{tenant}/oauth2/v2.0/token", server.token)
        app.router.add_route("*", "/{path:.*}", server.vault)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        server.tls_port = runner.addresses[0][1]
        proxy = await asyncio.start_server(_proxied(server.tls_port), "127.0.0.1", 0)
        server.proxy_url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        ready.set()
        await ended.wait()
        proxy.close()
        await runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="key vault", daemon=True)
    thread.start()
    if not ready.wait(20):
        raise RuntimeError("the servers do not start")
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        loop.close()


def _proxied(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """Return a proxy (RFC 9110, CONNECT) that leads every name to one port."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if _CONNECT.match(head) is None:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with suppress(asyncio.CancelledError):  # at the end; asyncio would log it
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

    return accept
