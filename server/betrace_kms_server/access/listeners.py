"""Which authenticator stands at which address: one gRPC server for each way to identify callers.

A call does not show on which of its server's addresses it came in. So each identity of a unix socket has a server of
its own, and so have the TCP addresses with TLS; everything else is one server.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import structlog

from betrace_kms_server.access.identity import Authenticator, Caller, SameCaller
from betrace_kms_server.access.policy_file import PolicyFile
from betrace_kms_server.access.tls import TlsCredentials, TlsFiles
from betrace_kms_server.access.tokens import TokenAuthenticator
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.groups import group_id
from betrace_kms_server.host.sockets import Address

log = structlog.get_logger()

REFRESH_SECONDS = 1.0
"""How often files of credentials are checked for a change."""


THREE_WAYS = (
    "give the unix socket an identity (unix:/path;identity=NAME), set kms.server.token-file, or set up mutual TLS"
    " (kms.server.tls.cert-file, .key-file, .client-ca-file)"
)
"""How callers can be authenticated."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Addresses at which callers are identified alike."""

    addresses: Sequence[Address]
    authenticator: Authenticator
    credentials: grpc.ServerCredentials | None = None


@dataclass(frozen=True, slots=True)
class Listeners:
    """All listeners, and what can be read again."""

    listeners: Sequence[Listener]
    reloadable: Sequence[TokenAuthenticator | TlsCredentials | PolicyFile]
    unauthenticated: Sequence[str]
    """Addresses that let everybody in who reaches them."""
    policy: PolicyFile | None = None

    @property
    def problem(self) -> str | None:
        """What is to be said if not all callers are authenticated."""
        if not self.unauthenticated:
            return None
        return f"callers are not authenticated at {', '.join(self.unauthenticated)}: {THREE_WAYS}"

    def reload(self) -> None:
        """Read tokens, certificates and the policy again."""
        for each in self.reloadable:
            each.reload()

    async def follow(self) -> None:
        """Read tokens, certificates and the policy again whenever they change."""
        while self.reloadable:
            await asyncio.sleep(REFRESH_SECONDS)
            for each in self.reloadable:
                await asyncio.to_thread(each.refresh)


def open_listeners(settings: Settings) -> Listeners:
    """Return what the settings ask for. Raises StartRefused."""
    tokens, tls = _open_tokens(settings), _open_tls(settings)
    by_tls = [address for address in settings.listen if tls and not address.socket_path]
    named = [address for address in settings.listen if address.permissions.identity]
    plain = [address for address in settings.listen if address not in by_tls and address not in named]
    listeners = [
        Listener([address for address in named if address.permissions.identity == name], _same(name))
        for name in sorted({address.permissions.identity for address in named})
    ]
    if tls and by_tls:
        from betrace_kms_server.access.certificates import CertificateAuthenticator  # late: X.509 takes 17 ms

        listeners.append(Listener(by_tls, CertificateAuthenticator(), tls.credentials))
    if plain:
        listeners.append(Listener(plain, tokens or SameCaller()))
    unauthenticated = [] if tokens else [address.text for address in plain]
    policy = PolicyFile(settings.policy_file) if settings.policy_file else None
    found = Listeners(listeners, [each for each in (tokens, tls, policy) if each], unauthenticated, policy)
    if found.problem and settings.require_identity:
        raise StartRefused(f"kms.server.require-identity is set, and {found.problem}")
    if found.problem:
        log.warning(f"CALLERS ARE NOT AUTHENTICATED: {found.problem}")  # noqa: G004  # the line is the message
    return found


def _same(name: str) -> SameCaller:
    return SameCaller(Caller(name, "socket"))


def _open_tokens(settings: Settings) -> TokenAuthenticator | None:
    if settings.token_file is None:
        return None
    group = None if settings.token_group is None else group_id(settings.token_group)
    return TokenAuthenticator(settings.token_file, group)


def _open_tls(settings: Settings) -> TlsCredentials | None:
    chain, key, authority = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    return TlsCredentials(TlsFiles(chain, key, authority)) if chain and key and authority else None
