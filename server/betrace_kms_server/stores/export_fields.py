"""Fields of the lines of an export, and what is said of a line that is not one."""

import base64
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel

from betrace_kms_server.core.errors import InvalidRequest

WRAPPED_BYTES = 6144
"""The longest ciphertext of KMS (AWS KMS API reference, Decrypt, CiphertextBlob)."""


class Line(BaseModel):
    """A line: every field must be there, and no other may."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True
    )

    def json_line(self) -> bytes:
        """Return the line, its newline included."""
        return orjson.dumps(self.model_dump(by_alias=True), option=orjson.OPT_APPEND_NEWLINE)


L = TypeVar("L", bound=Line)


def fields_of(line: bytes) -> dict[str, Any]:
    """Return the members of a line. Raises ValueError for what is no JSON object."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ValueError("is no JSON: the line was cut off or damaged") from None
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    return fields


def read(kind: type[L], line: bytes) -> L:
    """Return a line of this kind. Raises ValueError that says in one sentence what is wrong with it.

    Fields that are missing are named first, then unknown ones, then the first bad value.
    """
    try:
        return kind.model_validate(fields_of(line))
    except ValidationError as cause:
        errors: list[Any] = cause.errors(include_url=False, include_input=False)
    for problem, verb in (("missing", "missing"), ("extra_forbidden", "unknown")):
        names = sorted(error["loc"][0] for error in errors if error["type"] == problem)
        if names:
            raise ValueError(f"{', '.join(names)} is {verb}")
    name, cause_ = errors[0]["loc"][0], errors[0].get("ctx", {}).get("error")
    text = str(cause_) if cause_ else errors[0]["msg"]
    names_itself = name in ("tenantId", "keyId") and text.startswith(("tenant_id", "key_id"))
    raise ValueError(text if names_itself else f"{name} {text}")


def text(value: object) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def checked(check: Callable[[str], str]) -> BeforeValidator:
    """Return what reads a text by a check that raises InvalidRequest."""

    def read_text(value: object) -> str:
        try:
            return check(text(value))
        except InvalidRequest as cause:
            raise ValueError(cause.message) from None

    return BeforeValidator(read_text)


def _of_size(least: int, most: int, decoded: Callable[[str], bytes], form: str) -> BeforeValidator:
    def read_bytes(value: object) -> bytes:
        try:
            raw = value if isinstance(value, bytes) else decoded(text(value))
        except ValueError:
            raw = b""
        if not least <= len(raw) <= most:
            raise ValueError(f"must be {most if least == most else f'{least} to {most}'} bytes in {form}")
        return raw

    return BeforeValidator(read_bytes)


def in_base64(least: int, most: int) -> BeforeValidator:
    """Return what reads so many bytes in base64."""
    return _of_size(least, most, lambda value: base64.b64decode(value, validate=True), "base64")


BASE64 = PlainSerializer(lambda raw: base64.b64encode(raw).decode())
Text = Annotated[str, BeforeValidator(text)]
Checksum = Annotated[
    bytes, _of_size(32, 32, bytes.fromhex, "hexadecimal digits"), PlainSerializer(lambda raw: raw.hex())
]
