"""An export of the key store: one line of JSON for each key, nothing in it secret, because seeds are wrapped.

Times are milliseconds since the Unix epoch, as in the store, so that what is imported is byte for byte what was
exported. A line is taken as it is or not at all: every field must be there, no other may, and the checksum must be that
of the row (`StoredKey.checksum`). It does not cover the status and its times, which change in the life of a key; these
must fit each other.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any, get_args

import orjson

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.core.tenancy import check_key_id, check_tenant_id

_PUBLIC_KEY_BYTES = 32
_WRAPPED_BYTES = 6144
_LATEST_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z, the last moment that RFC 3339 can tell."""
_STATUSES = get_args(KeyStatus)
_ENDS: Mapping[str, tuple[set[bool], set[bool]]] = {
    "active": ({False}, {False}),
    "rotated": ({True}, {False}),
    "revoked": ({True, False}, {True}),
}
"""For each status, whether a key may have been rotated, and revoked."""


def line_of(key: StoredKey) -> bytes:
    """Return a key as a line of JSON, its newline included."""
    fields = {
        "tenantId": key.tenant_id,
        "keyId": key.key_id,
        "provider": key.provider,
        "masterKeyArn": key.wrapped_seed.master_key_arn,
        "wrappedSeed": base64.b64encode(key.wrapped_seed.blob).decode(),
        "publicKey": base64.b64encode(key.public_key).decode(),
        "status": key.status,
        "createTime": key.create_time_ms,
        "rotateTime": key.rotate_time_ms,
        "revokeTime": key.revoke_time_ms,
        "checksum": key.checksum().hex(),
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def key_of(line: bytes) -> StoredKey:
    """Return the key that a line tells. Raises ValueError that says what is wrong with the line."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ValueError("is no JSON: the line was cut off or damaged") from None
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    for names, verb in ((_READERS.keys() - fields.keys(), "missing"), (fields.keys() - _READERS.keys(), "unknown")):
        if names:
            raise ValueError(f"{', '.join(sorted(names))} is {verb}")
    values = {}
    for name, reader in _READERS.items():
        try:
            values[name] = reader(fields[name])
        except ValueError as cause:
            raise ValueError(f"{name} {cause}") from None
        except InvalidRequest as cause:
            raise ValueError(cause.message) from None
    checksum = values.pop("checksum")
    wrapped_seed = WrappedKey(values.pop("wrappedSeed"), values.pop("masterKeyArn"))
    tenant_id, key_id, provider, *others = values.values()
    key = StoredKey(tenant_id, key_id, provider, wrapped_seed, *others)
    if key.checksum() != checksum:
        raise ValueError("does not have its checksum: it was damaged or edited")
    rotated, revoked = _ENDS[key.status]
    if (key.rotate_time_ms is not None) not in rotated or (key.revoke_time_ms is not None) not in revoked:
        raise ValueError(f"status {key.status} does not fit rotateTime and revokeTime")
    return key


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def _status(value: object) -> str:
    if value not in _STATUSES:
        raise ValueError(f"must be one of {', '.join(_STATUSES)}")
    return str(value)


def _time(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LATEST_MS:
        raise ValueError("must be milliseconds since the Unix epoch")
    return value


def _no_time_or(value: object) -> int | None:
    return None if value is None else _time(value)


def _of_size(least: int, most: int, decoded: Callable[[str], bytes], form: str) -> Callable[[object], bytes]:
    def read(value: object) -> bytes:
        try:
            raw = decoded(_text(value))
        except ValueError:
            raw = b""
        if not least <= len(raw) <= most:
            raise ValueError(f"must be {most if least == most else f'{least} to {most}'} bytes in {form}")
        return raw

    return read


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_READERS: Mapping[str, Callable[[object], Any]] = {
    "tenantId": lambda value: check_tenant_id(_text(value)),
    "keyId": lambda value: check_key_id(_text(value)),
    "provider": _text,
    "masterKeyArn": _text,
    "wrappedSeed": _of_size(1, _WRAPPED_BYTES, _base64, "base64"),
    "publicKey": _of_size(_PUBLIC_KEY_BYTES, _PUBLIC_KEY_BYTES, _base64, "base64"),
    "status": _status,
    "createTime": _time,
    "rotateTime": _no_time_or,
    "revokeTime": _no_time_or,
    "checksum": _of_size(32, 32, bytes.fromhex, "hexadecimal digits"),
}
"""Field -> what checks it, in the order of a line, which is that of StoredKey."""
