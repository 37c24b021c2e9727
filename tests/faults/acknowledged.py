"""What a daemon acknowledged, and what of it is lost: the ledger of the kill drill.

An answer that never came says nothing: the change may be there or not. What was answered must be there.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient, KmsClientError, Plaintext, SpanSignature

Key = tuple[str, str]
"""Tenant and key id."""
_AT_ONCE = 500
"""Messages that are opened by one call."""


def span(tenant: str) -> ComplianceSpan:
    """Return a span of its own for each tenant."""
    return ComplianceSpan(trace_id=tenant.encode().rjust(16, b"-")[-16:], span_id=b"s" * 8, name="user.login")


@dataclass
class Ledger:
    """Acknowledged by one key store."""

    counts: Counter[str] = field(default_factory=Counter)
    """Acknowledged operations, by name."""
    signatures: dict[Key, SpanSignature] = field(default_factory=dict)
    sealed: list[tuple[str, dict[str, str], bytes, bytes]] = field(default_factory=list)
    """Tenant, encryption context, ciphertext, and what it must open to."""
    retired: set[Key] = field(default_factory=set)
    """Keys that a rotation or a revocation ended: not active any more."""
    revoking: set[Key] = field(default_factory=set)
    """Keys whose revocation was asked for."""
    revoked: set[Key] = field(default_factory=set)
    locked: bool | None = False
    """Whether the emergency stop is in force; None while an answer is outstanding."""

    def lost(self, client: KmsClient) -> Iterator[str]:
        """Yield a line for each thing that a daemon acknowledged and does not have."""
        for (tenant, key_id), signed in list(self.signatures.items()):
            reason = client.verify_span(tenant, span(tenant), signed.signature, key_id).reason
            good = {"KEY_REVOKED"} if (tenant, key_id) in self.revoked else {"VALID"}
            if (tenant, key_id) in self.revoking:
                good.add("KEY_REVOKED")
            if reason not in good:
                yield f"a signature of key {key_id} of {tenant} is {reason}"
        of_tenants = defaultdict[str, list[tuple[Mapping[str, str], bytes, bytes]]](list)
        for tenant, context, blob, plaintext in self.sealed:
            of_tenants[tenant].append((context, blob, plaintext))
        for tenant, messages in of_tenants.items():
            for first in range(0, len(messages), _AT_ONCE):
                yield from _do_not_open(client, tenant, messages[first : first + _AT_ONCE])
        for tenant in sorted(of_tenants):
            try:
                again = client.decrypt(tenant, client.encrypt(tenant, b"again").ciphertext_blob).plaintext
            except KmsClientError as error:
                yield f"{tenant} cannot seal and open: {error}"
            else:
                if again != b"again":
                    yield f"what {tenant} seals opens to something else"
        for tenant in sorted({tenant for tenant, _ in self.signatures}):
            keys = {key.key_id: key.status for key in client.get_public_keys(tenant).keys}
            active = [key_id for key_id, status in keys.items() if status == "ACTIVE"]
            if len(active) != 1:
                yield f"{tenant} has {len(active)} active keys"
            elif (tenant, active[0]) in self.retired:
                yield f"the key {active[0]} of {tenant} is active again"
            else:  # its seed opens: the active key signs
                signed = client.sign_span(tenant, span(tenant))
                if signed.key_id != active[0]:
                    yield f"{tenant} signs with {signed.key_id}, and {active[0]} is active"

    def lost_lock(self, admin: Any) -> Iterator[str]:
        """Yield a line if the emergency stop is not as it was acknowledged, and end it if one is in force."""
        locked = orjson.loads(admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10).json)["lock"] is not None
        if self.locked is not None and self.locked is not locked:
            yield f"the emergency stop was acknowledged as {self.locked} and is {locked}"
        if locked:
            admin.Unlock(admin_pb2.UnlockRequest(), timeout=10)
        self.locked = False


def _do_not_open(
    client: KmsClient, tenant: str, messages: Sequence[tuple[Mapping[str, str], bytes, bytes]]
) -> Iterator[str]:
    """Yield a line for each message that does not open to what was sealed, also when it is asked for once more."""
    results = client.decrypt_batch(tenant, [(blob, context) for context, blob, _ in messages])
    for (context, blob, plaintext), result in zip(messages, results, strict=True):
        try:
            opened = result if isinstance(result, Plaintext) else client.decrypt(tenant, blob, context)
        except KmsClientError as error:
            yield f"a ciphertext of {tenant} does not open: {error}"
        else:
            if opened.plaintext != plaintext:
                yield f"a ciphertext of {tenant} opens to something else"
