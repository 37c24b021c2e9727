"""What the daemon's account may do to the master key beyond its needs, and how fast a key can go. Changes nothing."""

from collections.abc import Collection
from datetime import timedelta
from typing import cast

from betrace_kms_server.core.findings import Finding
from betrace_kms_server.providers.gcp.errors import KeyName
from betrace_kms_server.providers.gcp.sdk import CryptoKey

NEEDED = (
    "cloudkms.cryptoKeys.get",
    "cloudkms.cryptoKeyVersions.useToDecrypt",
    "cloudkms.cryptoKeyVersions.useToEncrypt",
)
_TOO_MUCH = (
    "cloudkms.cryptoKeys.setIamPolicy",
    "cloudkms.cryptoKeys.update",
    "cloudkms.cryptoKeyVersions.create",
    "cloudkms.cryptoKeyVersions.destroy",
    "cloudkms.cryptoKeyVersions.update",
)
ASKED = (*NEEDED, *_TOO_MUCH)
"""Permissions on a CryptoKey that are asked about, by TestIamPermissions."""
_LEAST_WAIT = timedelta(days=7)


def inspect_permissions(key: KeyName, granted: Collection[str]) -> Finding:
    """Return whether the account may do what it needs and no more. `granted` are those of `ASKED` that it has."""
    missing = [each for each in NEEDED if each not in granted]
    more = [each for each in _TOO_MUCH if each in granted]
    if missing:
        return Finding("gcp_policy", f"the daemon may not {', '.join(missing)} on {key.name}: grant it by a role")
    if more:
        return Finding(
            "gcp_policy",
            f"the daemon may {', '.join(more)} on {key.name}: take that away, it needs what docs/providers/gcp.md"
            " lists",
        )
    return Finding("gcp_policy")


def inspect_key(key: KeyName, described: CryptoKey) -> Finding:
    """Return whether a version of the master key waits long enough before it is destroyed."""
    waits = cast("timedelta | None", described.destroy_scheduled_duration)  # so proto-plus gives a Duration
    if not waits or waits >= _LEAST_WAIT:  # Cloud KMS names no duration where its default is meant, 30 days
        return Finding("gcp_key")
    return Finding(
        "gcp_key",
        f"{key.name} is destroyed {waits.total_seconds() / 3600:.0f} hours after somebody asks for it: make a key with"
        " --destroy-scheduled-duration=30d, this cannot be changed later",
    )
