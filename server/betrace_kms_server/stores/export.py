"""An export of the key store: one line of JSON for each key, nothing in it secret, because seeds are wrapped.

Times are milliseconds since the Unix epoch, as in the store, so that what is imported is byte for byte what was
exported. A line is taken as it is or not at all: every field must be there, no other may, and the checksum must be that
of the row (`StoredKey.checksum`). It does not cover the status and its times, which change in the life of a key; these
must fit each other.
"""

import base64
from collections.abc import Callable
from typing import Annotated, Any, Self, get_args

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.core.tenancy import check_key_id, check_tenant_id

_PUBLIC_KEY_BYTES = 32
_WRAPPED_BYTES = 6144
_LATEST_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z, the last moment that RFC 3339 can express."""
_STATUSES = get_args(KeyStatus)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def _checked(check: Callable[[str], str]) -> BeforeValidator:
    def read(value: object) -> str:
        try:
            return check(_text(value))
        except InvalidRequest as cause:
            raise ValueError(cause.message) from None

    return BeforeValidator(read)


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


def _of_size(least: int, most: int, decoded: Callable[[str], bytes], form: str) -> BeforeValidator:
    def read(value: object) -> bytes:
        try:
            raw = value if isinstance(value, bytes) else decoded(_text(value))
        except ValueError:
            raw = b""
        if not least <= len(raw) <= most:
            raise ValueError(f"must be {most if least == most else f'{least} to {most}'} bytes in {form}")
        return raw

    return BeforeValidator(read)


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_IN_BASE64 = PlainSerializer(lambda raw: base64.b64encode(raw).decode())
_Time = Annotated[int, BeforeValidator(_time)]
_NoTimeOr = Annotated[int | None, BeforeValidator(_no_time_or)]
_Text = Annotated[str, BeforeValidator(_text)]


class ExportLine(BaseModel):
    """One key in the form of a line, its fields in the order of docs/key-store.md."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True
    )

    tenant_id: Annotated[str, _checked(check_tenant_id)]
    key_id: Annotated[str, _checked(check_key_id)]
    provider: _Text
    master_key_arn: _Text
    wrapped_seed: Annotated[bytes, _of_size(1, _WRAPPED_BYTES, _base64, "base64"), _IN_BASE64] = Field(repr=False)
    public_key: Annotated[bytes, _of_size(_PUBLIC_KEY_BYTES, _PUBLIC_KEY_BYTES, _base64, "base64"), _IN_BASE64]
    status: Annotated[KeyStatus, BeforeValidator(_status)]
    create_time: _Time
    rotate_time: _NoTimeOr
    revoke_time: _NoTimeOr
    checksum: Annotated[
        bytes, _of_size(32, 32, bytes.fromhex, "hexadecimal digits"), PlainSerializer(lambda raw: raw.hex())
    ]

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
    return orjson.dumps(ExportLine.of(key).model_dump(by_alias=True), option=orjson.OPT_APPEND_NEWLINE)


def key_of(line: bytes) -> StoredKey:
    """Return the key that a line holds. Raises ValueError that says what is wrong with the line."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ValueError("is no JSON: the line was cut off or damaged") from None
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    try:
        read = ExportLine.model_validate(fields)
    except ValidationError as cause:
        raise ValueError(_problem(cause.errors(include_url=False, include_input=False))) from None
    return read.key()


def _problem(errors: "list[Any]") -> str:
    """Return what is wrong in one sentence: fields that are missing, then unknown ones, then the first bad value."""
    for kind, verb in (("missing", "missing"), ("extra_forbidden", "unknown")):
        names = sorted(error["loc"][0] for error in errors if error["type"] == kind)
        if names:
            return f"{', '.join(names)} is {verb}"
    name, cause = errors[0]["loc"][0], errors[0].get("ctx", {}).get("error")
    problem = str(cause) if cause else errors[0]["msg"]
    return (
        problem
        if name in ("tenantId", "keyId") and problem.startswith(("tenant_id", "key_id"))
        else f"{name} {problem}"
    )
