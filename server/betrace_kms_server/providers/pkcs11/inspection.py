"""What the attributes of a master key must be (PKCS #11 v3.1, sections 4.8 and 4.10). Changes nothing."""

from collections.abc import Mapping
from typing import Any

from betrace_kms_server.core.findings import Finding
from betrace_kms_server.providers.pkcs11.keys import HsmKey

_REQUIRED: Mapping[str, tuple[bool, str]] = {
    "SENSITIVE": (True, "may be read in plaintext"),
    "ALWAYS_SENSITIVE": (True, "was readable in plaintext once, or made outside of the token"),
    "EXTRACTABLE": (False, "may leave the token"),
    "NEVER_EXTRACTABLE": (True, "could leave the token once, or was made outside of it"),
}
_USES = {"ENCRYPT": "does not encrypt", "DECRYPT": "does not decrypt"}
_ENOUGH_WRAPS = 1 / 2


def problem_of(flags: Mapping[str, Any], *, wraps: bool) -> tuple[str, str] | None:
    """Return why a key cannot be a master key and what to do, or None. One that only unwraps need not encrypt."""
    step = "make another key as docs/providers/pkcs11.md says, and set pkcs11.key-label"
    if flags.get("type") != "AES":
        return f"is of type {str(flags.get('type'))[:40]}, which does no AES-GCM", step
    for name, (required, problem) in _REQUIRED.items():
        if flags.get(name) is not required:
            return f"{problem} (CKA_{name} is {flags.get(name)})", step
    for name, problem in _USES.items():
        if flags.get(name) is not True and (wraps or name == "DECRYPT"):
            return f"{problem}: its CKA_{name} is {flags.get(name)}", f"set CKA_{name}, or {step}"
    return None


def inspect_flags(key: HsmKey, flags: Mapping[str, Any]) -> Finding:
    """Return whether a key can be used without the PIN."""
    if flags.get("PRIVATE") is True:
        return Finding("pkcs11_key")
    return Finding(
        "pkcs11_key",
        f"{key.name} can be used without the PIN (CKA_PRIVATE is not true): make another key as"
        " docs/providers/pkcs11.md says",
    )


def inspect_wraps(key: HsmKey, share: float) -> Finding:
    """Return whether a key has wrapped half of what it may. `share` is that of `pkcs11.max-wraps`."""
    if share <= _ENOUGH_WRAPS:
        return Finding("pkcs11_wraps")
    return Finding(
        "pkcs11_wraps",
        f"{key.name} has used {share:.0%} of pkcs11.max-wraps: make another key, set pkcs11.key-label to it, and list"
        " this one in pkcs11.former-key-labels",
    )
