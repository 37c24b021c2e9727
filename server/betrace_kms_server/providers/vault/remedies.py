"""What an operator does next about an error of Vault: commands of `bao`, which are those of `vault`, and settings."""

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
from betrace_kms_server.providers.vault.errors import TransitKey

LATENCY_ADVICE = "Vault answers slowly: run the daemon near it, and look at its own latency and that of its storage"


def remedy(error: KmsError, key: TransitKey) -> str | None:
    """Return an operator's next step, if it is one about Vault."""
    known = REMEDIES.get(type(error))
    return known(error, key) if known else None


def _allow(error: KmsError, _key: TransitKey) -> str:
    capability, _, path = error.metadata.get("action", "").partition(" on ")
    return f'add path "{path}" {{ capabilities = ["{capability}"] }} to a policy of the daemon\'s role'


def _look_at_key(_error: KmsError, key: TransitKey) -> str:
    return f"run bao read {key.mount}/keys/{key.key}, and compare it with docs/providers/vault.md"


def _open_the_way(error: KmsError, _key: TransitKey) -> str:
    if "kind" in error.metadata:  # the message knows more than that there was no answer
        return error.message.partition(": ")[2]
    return "run bao status with vault.address in the daemon's place; check DNS, the route and its TCP port"


def _find_credentials(_error: KmsError, _key: TransitKey) -> str:
    return "run bao token lookup with the daemon's token, and check vault.auth.*: see docs/providers/vault.md"


def _slow_down(_error: KmsError, _key: TransitKey) -> str:
    return "validate again in a minute; if it stays, run bao list sys/quotas/rate-limit, and raise what throttles"


def _distrust(_error: KmsError, _key: TransitKey) -> str:
    return "Vault does not open what it wrapped a moment ago: check what answers at vault.address"


def _check_service(_error: KmsError, _key: TransitKey) -> str:
    return (
        "check what answers at vault.address and the proxies on the route; do not keep keys behind it until it passes"
    )


REMEDIES: Mapping[type[KmsError], Callable[[KmsError, TransitKey], str]] = {
    AccessDenied: _allow,
    MasterKeyUnusable: _look_at_key,
    KmsUnreachable: _open_the_way,
    CredentialsUnavailable: _find_credentials,
    Throttled: _slow_down,
    DoesNotOpen: _distrust,
    BadAnswer: _check_service,
}
"""For every error of a provider that Vault has a part in."""
