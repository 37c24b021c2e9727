"""What an answer of Key Vault, or the lack of one, means: one table for all requests of the provider.

Statuses and codes are those of the REST API ("Azure Key Vault REST API Error Codes"). Texts of the service are not
read, and none of them goes into a message.
"""

import asyncio
import ssl
from collections.abc import Mapping

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.host.process import descriptor_shortage
from betrace_kms_server.providers.azure.client import Answer
from betrace_kms_server.providers.azure.key_ids import KeyId

DELETED, DISABLED = "Deleted", "Disabled"
"""States of a key that somebody decided on."""
_MOST_SECONDS = 60.0
_DATA_ACTIONS: Mapping[str, str] = {
    "": "read",
    "wrapkey": "wrap/action",
    "unwrapkey": "unwrap/action",
    "encrypt": "encrypt/action",
    "decrypt": "decrypt/action",
    "sign": "sign/action",
}
_NETWORK = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})
_OPENING = frozenset({"unwrapkey", "decrypt"})


def data_action(key: KeyId, operation: str) -> str:
    """Return what a role must allow for an operation, as Azure's role definitions name it."""
    kind = "managedHsm" if key.in_hsm else "vaults"
    return f"Microsoft.KeyVault/{kind}/keys/{_DATA_ACTIONS[operation]}"


def refused(key: KeyId, operation: str, answer: Answer) -> KmsError:
    """Return the error for an answer that is not 200."""
    codes, metadata = answer.codes, {"master_key": key.id}
    match answer.status:
        case 400 if operation in _OPENING:
            return DoesNotOpen()
        case 400:
            return MasterKeyUnusable(
                f"Key Vault refuses to {_verb(operation)} with {key.id}: check its type, size and permitted operations"
                " in docs/providers/azure.md",
                metadata=metadata,
            )
        case 401:
            return CredentialsUnavailable(
                f"Key Vault does not accept the daemon's token: check that the identity is of the tenant of the vault"
                f" {key.vault}, and the clock of this machine"
            )
        case 403 if "KeyDisabled" in codes:
            return disabled(key)
        case 403 if codes & _NETWORK:
            return AccessDenied(
                f"the firewall of Key Vault {key.vault} does not let the daemon in: allow its network, or give it a"
                " private endpoint",
                metadata={"action": "network access", "master_key": key.id},
            )
        case 403 if any(code.startswith("Key") for code in codes):
            return MasterKeyUnusable(
                f"{key.id} may not {_verb(operation)} now: check its activation and expiry dates and its permitted"
                f" operations with `az keyvault key show {key.az}`",
                metadata=metadata,
            )
        case 403:
            action = data_action(key, operation)
            return AccessDenied(
                f"Key Vault denies {action} on {key.id}: assign the daemon's identity a role that has it",
                metadata={"action": action, "master_key": key.id},
            )
        case 404:
            return missing(key)
        case 409:
            return MasterKeyUnusable(
                f"{key.id} is being deleted or recovered: recover it with `az keyvault key recover {key.az}`",
                metadata=metadata,
                state="PendingDeletion",
                withdrawn=True,
            )
        case 429:
            throttled = Throttled("Key Vault throttles: try again later, or spread tenants over several vaults")
            if answer.retry_after is not None:
                throttled.retry_after = min(max(answer.retry_after, 1.0), _MOST_SECONDS)
            return throttled
        case 301 | 302 | 307 | 308:
            return KmsUnreachable(
                "Key Vault redirects to another address, which is not followed: check the proxies on the route",
                metadata={"kind": "redirect"},
            )
        case status:
            return KmsUnreachable(
                f"Key Vault answers with status {status}: check the service health of its Azure Region, and the proxies"
                " on the route"
            )


def missing(key: KeyId) -> MasterKeyUnusable:
    """Return the error for a key that is not there, or not any more: Key Vault answers alike."""
    return MasterKeyUnusable(
        f"Key Vault has no key {key.id}: check azure.key-vault.key-id and azure.key-vault.sign-key-id, or recover it"
        f" with `az keyvault key recover {key.az}`",
        metadata={"master_key": key.id},
        state=DELETED,
        withdrawn=True,
    )


def disabled(key: KeyId, version: str = "") -> MasterKeyUnusable:
    """Return the error for a key, or for a version of it, that somebody disabled."""
    which = f" --version {version}" if version else ""
    return MasterKeyUnusable(
        f"{key.id} is disabled, or the version of it that is needed: enable it with `az keyvault key set-attributes"
        f" {key.az}{which} --enabled true`",
        metadata={"master_key": key.id},
        state=DISABLED,
        withdrawn=True,
    )


def no_token(problem: str = "") -> CredentialsUnavailable:
    """Return the error for a daemon that gets no token."""
    return CredentialsUnavailable(
        "the daemon gets no token for Key Vault" + (f", {problem}" if problem else "") + ": check its workload identity"
        " or managed identity, or AZURE_CLIENT_ID, AZURE_TENANT_ID and the credential beside them"
    )


def unanswered(cause: Exception) -> KmsError:
    """Return the error for a request that got no answer, whatever the SDK raised."""
    if isinstance(cause, KmsError):
        return cause
    if isinstance(cause, ClientAuthenticationError):
        return no_token()
    if isinstance(cause, AzureError) and isinstance(cause.inner_exception, ssl.SSLError):
        return KmsUnreachable(
            "TLS with Key Vault fails: check the proxies on the route, and that the system trusts their authority",
            metadata={"kind": "tls"},
        )
    if isinstance(cause, HttpResponseError):
        return KmsUnreachable("the answer of Key Vault cannot be read: check the proxies on the route")
    if isinstance(cause, AzureError | asyncio.TimeoutError | OSError):
        return KmsUnreachable(
            descriptor_shortage() or "no answer from Key Vault: check azure.key-vault.key-id, DNS, and the route to it"
        )
    return KmsUnreachable(
        f"a request to Key Vault fails with {type(cause).__name__}: the daemon's log has the traceback",
        metadata={"kind": "sdk"},
    )


def _verb(operation: str) -> str:
    return operation.removesuffix("key") or "be read"
