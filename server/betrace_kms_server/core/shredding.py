"""What has become of a tenant that is to be shredded, as the key store keeps it beside the tenant's generation.

The record is one line of text: status, two times and a checksum over these and the tenant id. So a record that was
altered, cut, or moved to another tenant is seen, and is never taken for a tenant that is open. A tenant without a
record is open.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, cast, get_args

from betrace_kms_server.core.errors import KeyDamaged, TenantPendingShred, TenantShredded

Status = Literal["pending", "destroying", "shredded"]
_CHECKSUM_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Shredding:
    """A shredding that was asked for. Times are milliseconds since the Unix epoch."""

    status: Status
    """`pending` until it is due; `destroying` from when it cannot be cancelled; `shredded` when no key is left."""
    since_ms: int
    """When it was asked for."""
    due_ms: int
    """From when the keys are destroyed; of a tenant that was shredded, when they had been."""

    def record(self, tenant_id: str) -> str:
        """Return the line that a key store keeps."""
        line = f"{self.status}:{self.since_ms}:{self.due_ms}"
        return f"{line}:{_checksum(tenant_id, line)}"

    def refusal(self) -> TenantPendingShred | TenantShredded:
        """Return what a call that encrypts or decrypts is refused with."""
        return TenantPendingShred() if self.status == "pending" else TenantShredded()


@dataclass(frozen=True, slots=True)
class TenantHead:
    """What a key store has of a tenant as a whole."""

    tenant_id: str
    generation: int
    record: str | None = None
    """The record of a shredding, unread; None if there is none."""

    def shredding(self) -> Shredding | None:
        """Return the shredding. Raises KeyDamaged for a record that is not what was written."""
        return None if self.record is None else shredding_of(self.tenant_id, self.record)

    def check_open(self) -> None:
        """Raise TenantPendingShred, TenantShredded or KeyDamaged unless the tenant is open."""
        if (found := self.shredding()) is not None:
            raise found.refusal()


def shredding_of(tenant_id: str, record: str) -> Shredding:
    """Read a record. Raises KeyDamaged for one that is not what was written for this tenant."""
    line, _, _ = record.rpartition(":")
    try:
        status, since_ms, due_ms = line.split(":")
        found = Shredding(cast(Status, status), int(since_ms), int(due_ms))
    except ValueError as cause:
        raise _damaged(tenant_id) from cause
    if status not in get_args(Status) or found.record(tenant_id) != record:
        raise _damaged(tenant_id)
    return found


def _checksum(tenant_id: str, line: str) -> str:
    return sha256(f"{tenant_id}\0{line}".encode()).hexdigest()[:_CHECKSUM_CHARACTERS]


def _damaged(tenant_id: str) -> KeyDamaged:
    return KeyDamaged(
        f"whether tenant {tenant_id} is to be shredded is damaged in the key store: restore the store from a backup;"
        " nothing is encrypted or decrypted for the tenant until then"
    )
