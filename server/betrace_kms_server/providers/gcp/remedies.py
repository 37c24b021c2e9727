"""What an operator does next about an error of Cloud KMS: commands of gcloud, and settings."""

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
from betrace_kms_server.providers.gcp.errors import KeyName

LATENCY_ADVICE = (
    "Cloud KMS answers slowly: run the daemon in the location of the key; keys of protection level HSM or EXTERNAL take"
    " longer than those of SOFTWARE"
)
_ROLES: Mapping[str, str] = {
    "cloudkms.cryptoKeyVersions.useToEncrypt": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
    "cloudkms.cryptoKeyVersions.useToDecrypt": "roles/cloudkms.cryptoKeyEncrypterDecrypter",
    "cloudkms.cryptoKeys.get": "roles/cloudkms.viewer",
}


def remedy(error: KmsError, key: KeyName) -> str | None:
    """Return an operator's next step, if it is one about Cloud KMS."""
    known = REMEDIES.get(type(error))
    return known(error, key) if known else None


def _rest(error: KmsError) -> str:
    return error.message.partition(": ")[2]


def _allow(error: KmsError, key: KeyName) -> str:
    if "kind" in error.metadata:  # the message knows more than that a role is missing
        return _rest(error)
    permission = error.metadata.get("action", "")
    role = _ROLES.get(permission)
    if role is None:
        return f"give the daemon's service account a custom role with {permission} in project {key.project}"
    _, _, _, _, _, ring, _, name = key.name.split("/")
    return (
        f"run gcloud kms keys add-iam-policy-binding {name} --keyring={ring} --location={key.location}"
        f" --project={key.project} --role={role} with the daemon's account as --member"
    )


def _look_at_key(error: KmsError, key: KeyName) -> str:
    if isinstance(error, MasterKeyUnusable) and error.state:
        return _rest(error)
    return f"run gcloud kms keys versions list {key.flags}, and compare the key with docs/providers/gcp.md"


def _open_the_way(error: KmsError, _key: KeyName) -> str:
    if "kind" in error.metadata:
        return _rest(error)
    return "check DNS and the route to cloudkms.googleapis.com:443 in the daemon's place, and status.cloud.google.com"


def _find_credentials(error: KmsError, _key: KeyName) -> str:
    return f"{_rest(error)}; see docs/providers/gcp.md"


def _slow_down(_error: KmsError, key: KeyName) -> str:
    return (
        "validate again in a minute; if it stays, raise the quota of cryptographic requests of Cloud KMS in project"
        f" {key.project}"
    )


def _distrust(_error: KmsError, _key: KeyName) -> str:
    return "Cloud KMS does not open what it wrapped a moment ago: check what answers at gcp.kms.endpoint"


def _check_service(_error: KmsError, _key: KeyName) -> str:
    return (
        "check what answers at gcp.kms.endpoint and the proxies on the route; do not keep keys behind it until it"
        " passes"
    )


REMEDIES: Mapping[type[KmsError], Callable[[KmsError, KeyName], str]] = {
    AccessDenied: _allow,
    MasterKeyUnusable: _look_at_key,
    KmsUnreachable: _open_the_way,
    CredentialsUnavailable: _find_credentials,
    Throttled: _slow_down,
    DoesNotOpen: _distrust,
    BadAnswer: _check_service,
}
"""For every error of a provider that Cloud KMS has a part in."""
