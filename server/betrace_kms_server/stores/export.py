"""Signing keys in an export: one line of JSON for each key, nothing in it secret, because seeds are wrapped.

Times are milliseconds since the Unix epoch, as in the store, so that what is imported is byte for byte what was
exported. A line is taken as it is or not at all: every field must be there, no other may, and the checksum must be that
of the row (`StoredKey.checksum`). It does not cover the status and its times, which change in the life of a key; these
must fit each other.
"""

from typing import Annotated, Self, get_args

from pydantic import BeforeValidator, Field

from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.core.tenancy import check_key_id, check_tenant_id
from betrace_kms_server.stores.export_fields import (
    BASE64,
    WRAPPED_BYTES,
    Checksum,
    Line,
    Text,
    checked,
    in_base64,
    read,
)

_PUBLIC_KEY_BYTES = 32
_LATEST_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z, the last moment that RFC 3339 can express."""
_STATUSES = get_args(KeyStatus)


def _status(value: object) -> object:
    if value not in _STATUSES:
        raise ValueError(f"must be one of {', '.join(_STATUSES)}")
    return value


def _time(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LATEST_MS:
        raise ValueError("must be milliseconds since the Unix epoch")
    return value


def _no_time_or(value: object) -> int | None:
    return None if value is None else _time(value)


_Time = Annotated[int, BeforeValidator(_time)]
_NoTimeOr = Annotated[int | None, BeforeValidator(_no_time_or)]


class ExportLine(Line):
    """One key in the form of a line, its fields in the order of docs/key-store.md."""

    tenant_id: Annotated[str, checked(check_tenant_id)]
    key_id: Annotated[str, checked(check_key_id)]
    provider: Text
    master_key_arn: Text
    wrapped_seed: Annotated[bytes, in_base64(1, WRAPPED_BYTES), BASE64] = Field(repr=False)
    public_key: Annotated[bytes, in_base64(_PUBLIC_KEY_BYTES, _PUBLIC_KEY_BYTES), BASE64]
    status: Annotated[KeyStatus, BeforeValidator(_status)]
    create_time: _Time
    rotate_time: _NoTimeOr
    revoke_time: _NoTimeOr
    checksum: Checksum

    @classmethod
    def of(cls, key: StoredKey) -> Self:
        """Return the line of a stored key. It is not checked: a key that the store holds goes into an export."""
        return cls.model_construct(
            tenant_id=key.tenant_id,
            key_id=key.key_id,
            provider=key.provider,
            master_key_arn=key.wrapped_seed.master_key_arn,
            wrapped_seed=key.wrapped_seed.blob,
            public_key=key.public_key,
            status=key.status,
            create_time=key.create_time_ms,
            rotate_time=key.rotate_time_ms,
            revoke_time=key.revoke_time_ms,
            checksum=key.checksum(),
        )

    def key(self) -> StoredKey:
        """Return the key. Raises ValueError if its checksum or its times do not fit it."""
        key = StoredKey(
            self.tenant_id,
            self.key_id,
            self.provider,
            WrappedKey(self.wrapped_seed, self.master_key_arn),
            self.public_key,
            self.status,
            self.create_time,
            self.rotate_time,
            self.revoke_time,
        )
        if key.checksum() != self.checksum:
            raise ValueError("does not have its checksum: it was damaged or edited")
        if not key.times_fit_status():
            raise ValueError(f"status {key.status} does not fit rotateTime and revokeTime")
        return key


def line_of(key: StoredKey) -> bytes:
    """Return a key as a line of JSON, its newline included."""
    return ExportLine.of(key).json_line()


def key_of(line: bytes) -> StoredKey:
    """Return the key that a line holds. Raises ValueError that says what is wrong with the line."""
    return read(ExportLine, line).key()
