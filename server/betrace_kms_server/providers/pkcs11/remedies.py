"""What an operator does next about an error of an HSM: commands of pkcs11-tool (OpenSC), and settings."""

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
from betrace_kms_server.providers.pkcs11.keys import HsmKey

LATENCY_ADVICE = "the HSM answers slowly: check its load and the route to it, and raise pkcs11.processes"


def remedy(error: KmsError, key: HsmKey) -> str | None:
    """Return an operator's next step, if it is one about the HSM."""
    known = REMEDIES.get(type(error))
    return known(error, key) if known else None


def _step_of_message(error: KmsError, _key: HsmKey) -> str:
    return error.message.rpartition(": ")[2]  # it knows more than the condition's name


def _look_at_key(_error: KmsError, key: HsmKey) -> str:
    return (
        f'run pkcs11-tool --module LIBRARY --token-label "{key.token}" --login --list-objects --type secrkey, and'
        " compare the key with docs/providers/pkcs11.md"
    )


def _slow_down(_error: KmsError, _key: HsmKey) -> str:
    return "lower pkcs11.processes, or close sessions of other programs on the token; then validate again"


def _distrust(_error: KmsError, _key: HsmKey) -> str:
    return "the HSM does not decrypt what it encrypted a moment ago: do not use it until its maker knows why"


def _check_library(_error: KmsError, _key: HsmKey) -> str:
    return (
        "check pkcs11.module and pkcs11.iv, and the version of the library: do not keep keys behind it until it passes"
    )


REMEDIES: Mapping[type[KmsError], Callable[[KmsError, HsmKey], str]] = {
    AccessDenied: _step_of_message,
    MasterKeyUnusable: _look_at_key,
    KmsUnreachable: _step_of_message,
    CredentialsUnavailable: _step_of_message,
    Throttled: _slow_down,
    DoesNotOpen: _distrust,
    BadAnswer: _check_library,
}
"""For every error of a provider that an HSM has a part in."""
