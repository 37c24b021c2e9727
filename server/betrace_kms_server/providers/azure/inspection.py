"""Whether a key of a vault is fit for its use, can be used now, and cannot be lost or let out. Changes nothing."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from betrace_kms_server.core.errors import MasterKeyUnusable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.providers.azure.errors import disabled
from betrace_kms_server.providers.azure.key_ids import KeyId

UNFIT = "Unfit"
"""State of a key that no outage explains: with it, nothing could ever work."""
WARN_SECONDS = 30 * 86_400.0
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Use:
    """What a key is for, and which keys are fit for it."""

    setting: str
    types: frozenset[str]
    operations: frozenset[str]
    wanted: str
    """Completes "make another key of type ..."."""
    curve: str | None = None


WRAPS = Use(
    "azure.key-vault.key-id", frozenset({"RSA", "RSA-HSM"}), frozenset({"wrapKey", "unwrapKey"}), "RSA or RSA-HSM"
)
SEALS = Use("azure.key-vault.key-id", frozenset({"oct-HSM"}), frozenset({"encrypt", "decrypt"}), "oct-HSM of 256 bits")
SIGNS = Use(
    "azure.key-vault.sign-key-id",
    frozenset({"EC", "EC-HSM"}),
    frozenset({"sign"}),
    "EC or EC-HSM on the curve P-256",
    "P-256",
)


def check_key(key: KeyId, use: Use, bundle: Mapping[str, Any], now: float | None = None) -> None:
    """Return if a key can be used, given what Key Vault says of it. Raises MasterKeyUnusable.

    A key that is not fit at all has the state `UNFIT`. `now` is in seconds since the Unix epoch.
    """
    if problem := _unfit(use, bundle):
        raise MasterKeyUnusable(
            f"{key.id} {problem}: make another key of type {use.wanted} that is not exportable, and set {use.setting}",
            metadata={"master_key": key.id},
            state=UNFIT,
        )
    attributes, now = _attributes(bundle), time.time() if now is None else now
    if attributes.get("enabled") is not True:
        raise disabled(key)
    if missing := use.operations - set(_key(bundle).get("key_ops") or ()):
        raise MasterKeyUnusable(
            f"{key.id} does not permit {' and '.join(sorted(missing))}: add it with `az keyvault key set-attributes"
            f" {key.az} --ops {' '.join(sorted(use.operations))}`",
            metadata={"master_key": key.id},
        )
    if _seconds(attributes, "exp", now + 1) <= now or _seconds(attributes, "nbf", now) > now:
        raise MasterKeyUnusable(
            f"{key.id} is expired or not yet active: set its dates with `az keyvault key set-attributes {key.az}"
            " --expires`, or rotate it",
            metadata={"master_key": key.id},
            state="Expired",
        )


def inspect_key(name: str, key: KeyId, bundle: Mapping[str, Any], now: float | None = None) -> Finding:
    """Return whether a key is safe from its loss. `name` is that of the finding."""
    attributes, now = _attributes(bundle), time.time() if now is None else now
    problems = []
    if "Purgeable" in str(attributes.get("recoveryLevel", "Purgeable")):
        problems.append(
            f"can be purged, and what it wrapped is lost then: turn on the purge protection of {key.vault} with"
            " `az keyvault update --enable-purge-protection true`"
        )
    left = _seconds(attributes, "exp", now + 2 * WARN_SECONDS) - now
    if left < WARN_SECONDS:
        problems.append(f"expires in {max(0, int(left // _DAY))} days: rotate it, or set a later date")
    return Finding(name, f"{key.id} {'; '.join(problems)}" if problems else "")


def _unfit(use: Use, bundle: Mapping[str, Any]) -> str | None:
    """Return why a key cannot serve a use, or None."""
    key = _key(bundle)
    if key.get("kty") not in use.types:
        return f"is of type {str(key.get('kty'))[:40]}"
    if use.curve is not None and key.get("crv") != use.curve:
        return f"is on the curve {str(key.get('crv'))[:40]}"
    if _attributes(bundle).get("exportable") is True or bundle.get("release_policy"):
        return "is exportable"
    return None


def _key(bundle: Mapping[str, Any]) -> Mapping[str, Any]:
    key = bundle.get("key")
    return key if isinstance(key, dict) else {}


def _attributes(bundle: Mapping[str, Any]) -> Mapping[str, Any]:
    attributes = bundle.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _seconds(attributes: Mapping[str, Any], name: str, default: float) -> float:
    value = attributes.get(name)
    return float(value) if isinstance(value, int | float) else default
