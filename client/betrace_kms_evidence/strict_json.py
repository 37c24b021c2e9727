"""The one strict reader of JSON for evidence: spans, proofs, signatures and key sets.

Readers of JSON differ: in which of two equal names they take, in which spellings of a name or number they know, in what
base64 may hold beside its digits. A document that shows one thing to one reader and another to the next is no evidence.
So here each member comes once and under one name, null stands for nothing, a 64-bit integer is a decimal string without
sign or zeros that it does not need, base64 is canonical, and what is unknown is refused.
"""

import json
import math
import re
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Set
from typing import Any

_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,29}", re.ASCII)
_TYPES = {str: "string", dict: "object", list: "array", bool: "true or false"}


class InvalidDocument(ValueError):
    """A document, or a member of it, is not in the form that evidence has. The message names the place."""


def strict_json(text: bytes | str) -> Any:
    """Parse JSON (RFC 8259) in UTF-8 without a byte order mark. Raises InvalidDocument.

    A name that comes twice in an object, NaN, the infinities, numbers beyond a double's range, half a surrogate pair
    and about a thousand levels of nesting are refused. Every number is a double.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        document = json.loads(
            text, object_pairs_hook=_unique, parse_int=_double, parse_float=_double, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise InvalidDocument("the document is nested too deeply: more than about 1,000 levels") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise InvalidDocument(str(cause)) from cause
    if "\\u" in text or "\\U" in text:
        _refuse_half_characters(document)
    return document


def members_of(value: Any, known: Set[str], place: str) -> dict[str, Any]:
    """Return the members of an object that has no others than `known`."""
    members: dict[str, Any] = typed(value, dict, place)
    if unknown := members.keys() - known:
        raise InvalidDocument(f"{place} has no member {min(unknown)!r}; it may have {', '.join(sorted(known))}")
    return members


def required(members: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a member that must be there."""
    if name not in members:
        raise InvalidDocument(f"{name} is missing")
    return typed(members[name], kind, name)


def typed(value: Any, kind: type, place: str) -> Any:
    """Return a value of one JSON type."""
    if not isinstance(value, kind):
        raise InvalidDocument(f"{place} must be a JSON {_TYPES[kind]}")
    return value


def decimal(value: Any, place: str, *, low: int = 0, high: int = 2**64 - 1) -> int:
    """Return a 64-bit integer, which is a decimal string in its shortest form."""
    text = typed(value, str, place)
    if not _DECIMAL.fullmatch(text) or not low <= (number := int(text)) <= high:
        raise InvalidDocument(
            f"{place} must be a number from {low} to {high}, as a decimal string in its shortest form"
        )
    return number


def base64_bytes(value: Any, place: str, *, size: int | None = None) -> bytes:
    """Return what base64 stands for (RFC 4648, section 4): with padding, and with zeros in the bits that are left."""
    text = typed(value, str, place)
    try:
        raw = b64decode(text)
    except ValueError:
        raw = b""
    return _checked(raw, b64encode(raw).decode() == text, place, "base64 with padding", size)


def base64url_bytes(value: Any, place: str, *, size: int | None = None) -> bytes:
    """Return what base64url stands for (RFC 7515, section 2): without padding, with zeros in the bits that are left."""
    text = typed(value, str, place)
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raw = b""
    same = urlsafe_b64encode(raw).decode().rstrip("=") == text
    return _checked(raw, same, place, "base64url without padding", size)


def _checked(raw: bytes, same: bool, place: str, form: str, size: int | None) -> bytes:
    if not same:  # what it stands for is written in another way
        raise InvalidDocument(f"{place} must be {form}")
    if size is not None and len(raw) != size:
        raise InvalidDocument(f"{place} must be {size} bytes, not {len(raw)}")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidDocument("an object has one name twice")
    return members


def _double(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise InvalidDocument("a number is beyond a double's range")
    return number


def _refuse_constant(name: str) -> Any:
    raise InvalidDocument(f"{name} is no JSON number")


def _refuse_half_characters(document: Any) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as cause:
        raise InvalidDocument("a string is not valid Unicode: it holds half a surrogate pair") from cause
