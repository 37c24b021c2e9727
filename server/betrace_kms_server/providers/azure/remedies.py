"""What an operator does next about an error of Key Vault: commands of `az`, and settings."""

from collections.abc import Callable, Mapping

from betrace_kms_server.core.errors import (
    AccessDenied,
    BadAnswer,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.providers.azure.key_ids import KeyId

LATENCY_ADVICE = (
    "Key Vault answers slowly: run the daemon in its Azure Region, and check the vault's latency in Azure Monitor"
)


def remedy(error: KmsError, key: KeyId) -> str | None:
    """Return an operator's next step, if it is one about Key Vault."""
    known = REMEDIES.get(type(error))
    return known(error, key) if known else None


def _allow(error: KmsError, key: KeyId) -> str:
    action = error.metadata.get("action", "")
    if "/" not in action:
        return f"run az keyvault network-rule list --name {key.vault}, and allow the daemon's network"
    on = error.metadata.get("master_key", key.id)
    return f"assign the daemon's identity a role with {action} on {on}: see docs/providers/azure.md"


def _check_key(error: KmsError, key: KeyId) -> str:
    named = KeyId(error.metadata.get("master_key", key.id))
    return f"run az keyvault key show {named.az}, and compare it with docs/providers/azure.md"


def _open_the_way(error: KmsError, key: KeyId) -> str:
    if "kind" in error.metadata:  # the message knows more than that there was no answer
        return error.message.partition(": ")[2]
    return f"run curl -sI {key.vault_url} in the daemon's place; check DNS, the route, HTTPS_PROXY and NO_PROXY"


def _find_credentials(_error: KmsError, _key: KeyId) -> str:
    return "check the daemon's identity as in docs/providers/azure.md; AZURE_TOKEN_CREDENTIALS=prod shortens the search"


def _slow_down(_error: KmsError, key: KeyId) -> str:
    return f"validate again in a minute; if it stays, check in Azure Monitor what else calls {key.vault}"


def _distrust(_error: KmsError, _key: KeyId) -> str:
    return "Key Vault does not open what it wrapped a moment ago: check what answers at azure.key-vault.key-id"


def _check_service(_error: KmsError, _key: KeyId) -> str:
    return (
        "check what answers at azure.key-vault.key-id and the proxies on the route; do not keep keys behind it until"
        " it passes"
    )


REMEDIES: Mapping[type[KmsError], Callable[[KmsError, KeyId], str]] = {
    AccessDenied: _allow,
    MasterKeyUnusable: _check_key,
    KmsUnreachable: _open_the_way,
    CredentialsUnavailable: _find_credentials,
    Throttled: _slow_down,
    DoesNotOpen: _distrust,
    BadAnswer: _check_service,
}
"""For every error of a provider that Key Vault has a part in."""
