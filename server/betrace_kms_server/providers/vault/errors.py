"""What an answer, or the lack of one, means: one table for all requests of the provider.

Statuses are those of the HTTP API ("HTTP status codes" in its documentation). Texts of Vault are read only where one
status has several causes, and none of them goes into a message.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.core.master_keys import VAULT_PREFIX
from betrace_kms_server.host.process import descriptor_shortage
from betrace_kms_server.providers.vault.client import Answer

CAPABILITIES: Mapping[str, str] = {
    "GenerateDataKey": "update on {mount}/encrypt/{key}",
    "Encrypt": "update on {mount}/encrypt/{key}",
    "Decrypt": "update on {mount}/decrypt/{key}",
    "DescribeKey": "read on {mount}/keys/{key}",
    "GenerateRandom": "update on {mount}/random",
}
"""What a policy must allow for each of our operations."""


@dataclass(frozen=True, slots=True)
class TransitKey:
    """The master key: a key of a transit engine."""

    mount: str
    key: str

    @property
    def name(self) -> str:
        """Its name in rows and messages, which does not depend on an address."""
        return f"{VAULT_PREFIX}{self.mount}/{self.key}"

    def capability(self, action: str) -> str:
        """Return what a policy must allow for an operation."""
        return CAPABILITIES[action].format(mount=self.mount, key=self.key)


def refused(action: str, key: TransitKey, answer: Answer) -> KmsError:
    """Return the error for an answer that is not 200. A 403 is judged by the caller, who can ask about the token."""
    said, metadata = answer.errors, {"master_key": key.name}
    match answer.status:
        case 400 if "encryption key not found" in said:
            return missing(key)
        case 400 if action == "Decrypt" and "disallowed by policy" in said:
            return MasterKeyUnusable(
                f"{key.name} does not decrypt versions as old as the one that wrapped this key: lower its"
                " min_decryption_version",
                metadata=metadata,
            )
        case 400 if action == "Decrypt":
            return DoesNotOpen()
        case 400:
            return MasterKeyUnusable(
                f"Vault refuses to encrypt with {key.name}: check the key with `vault read"
                f" {key.mount}/keys/{key.key}`, which must be of an AEAD type",
                metadata=metadata,
            )
        case 403:
            return denied(action, key)
        case 404 if action == "DescribeKey" and not said:
            return missing(key)
        case 404:
            return MasterKeyUnusable(
                f"Vault has no transit engine at {key.mount}: check vault.transit.mount and vault.namespace",
                metadata=metadata,
            )
        case 429:
            return Throttled("Vault throttles: try again later, or raise its rate limit quota for the transit engine")
        case 503 if "sealed" in said:
            return KmsUnreachable(
                "Vault is sealed: unseal it with `vault operator unseal`", metadata={"kind": "sealed"}
            )
        case 301 | 302 | 307 | 308:
            return KmsUnreachable(
                "Vault redirects to another address: let vault.address be the active node or a load balancer before it",
                metadata={"kind": "redirect"},
            )
        case status:
            return KmsUnreachable(
                f"Vault answers with status {status}: check its log, vault.address, and the proxies on the route"
            )


def denied(action: str, key: TransitKey) -> AccessDenied:
    """Return the error for a token whose policies do not allow an operation."""
    capability = key.capability(action)
    return AccessDenied(
        f"Vault denies {capability}: allow it to the daemon's role in its policy",
        metadata={"action": capability, "master_key": key.name},
    )


def missing(key: TransitKey) -> MasterKeyUnusable:
    """Return the error for a key that is not there."""
    return MasterKeyUnusable(
        f"Vault has no transit key {key.key} at {key.mount}: check vault.transit.key, or make it with `vault write -f"
        f" {key.mount}/keys/{key.key}`",
        metadata={"master_key": key.name},
    )


def rejected(problem: str) -> CredentialsUnavailable:
    """Return the error for a daemon that Vault does not know. `problem` says how it tried."""
    return CredentialsUnavailable(f"Vault does not accept the daemon's credentials: {problem}")


def unanswered(cause: Exception) -> KmsError:
    """Return the error for a request that got no answer, whatever the HTTP client raised."""
    if isinstance(cause, KmsError):
        return cause
    if isinstance(cause, ssl.SSLError | aiohttp.ClientSSLError):
        return KmsUnreachable(
            "TLS with Vault fails: check vault.ca-file, and that the certificate of the server names vault.address",
            metadata={"kind": "tls"},
        )
    if isinstance(cause, aiohttp.InvalidURL):
        return KmsUnreachable("vault.address is no address: write https://HOST:8200", metadata={"kind": "endpoint"})
    if isinstance(cause, asyncio.TimeoutError | aiohttp.ClientError | OSError):
        return KmsUnreachable(
            descriptor_shortage() or "no answer from Vault: check vault.address, that it runs, and the route to it"
        )
    return KmsUnreachable(
        f"a request to Vault fails with {type(cause).__name__}: the daemon's log has the traceback",
        metadata={"kind": "sdk"},
    )
