"""What the daemon's token may do beyond what it needs, and what would let the master key out. Changes nothing."""

from collections.abc import Mapping
from typing import Any

from betrace_kms_server.core.findings import Finding
from betrace_kms_server.providers.vault.errors import TransitKey

_DENY = "deny"


def needed_capabilities(key: TransitKey) -> Mapping[str, str]:
    """Return what a token must be able to do on each path that matters, as sys/capabilities-self names it."""
    at = key.mount
    return {
        f"{at}/encrypt/{key.key}": "update",
        f"{at}/decrypt/{key.key}": "update",
        f"{at}/keys/{key.key}": "read",
        f"{at}/keys/{key.key}/config": _DENY,
        f"{at}/keys/{key.key}/rotate": _DENY,
        f"{at}/keys/{key.key}/trim": _DENY,
        f"{at}/export/encryption-key/{key.key}": _DENY,
        f"{at}/backup/{key.key}": _DENY,
        f"{at}/keys/another": _DENY,
        "sys/policies/acl/another": _DENY,
    }


def inspect_capabilities(needed: Mapping[str, str], found: Mapping[str, Any]) -> Finding:
    """Return whether a token may do what it needs and no more. `found` is an answer of sys/capabilities-self."""
    if not set(needed) <= set(found):
        problem = "not known: allow update on sys/capabilities-self to the daemon's role, as the policy `default` does"
        return Finding("vault_policy", problem)
    more = [
        f"{', '.join(map(str, found[path]))} on {path}"
        for path, capability in needed.items()
        if set(found[path]) - {capability, _DENY}
    ]
    if not more:
        return Finding("vault_policy")
    return Finding(
        "vault_policy",
        f"the daemon's token may {'; '.join(more)}: take that away in its policies, it needs what"
        " docs/providers/vault.md lists",
    )


def inspect_key(key: TransitKey, data: Mapping[str, Any]) -> Finding:
    """Return whether the master key can leave Vault, or go. `data` describes it."""
    risks = {
        "allow_plaintext_backup": "can be backed up in plaintext: make another key, this cannot be taken back",
        "deletion_allowed": f"may be deleted: set deletion_allowed=false in {key.mount}/keys/{key.key}/config",
    }
    problems = [sentence for name, sentence in risks.items() if data.get(name) is True]
    return Finding("vault_key", f"{key.name} {'; '.join(problems)}" if problems else "")
