r"""JSON records of which some fields are sealed: where the values stand in a line, and what is put in their place.

Only the bytes of a value are replaced. Everything else in the line stays as it is: the order of members, white space,
how numbers are written, escapes, a byte order mark, the end of the line.

- A field is a member of the record, or of an object in it: ``user.email``. A member whose name is ``user.email`` is
  that field too. What is missing or null stays as it is. Where a member comes twice, or a list or value stands where an
  object must be, a reader could find plaintext that this module does not, so the record is refused.
- The plaintext is the JSON text of the value (RFC 8259) in UTF-8, as it stands in the line: a string with its quotes.
- A sealed value is a string: ``sealed:v1:`` and the AWS Encryption SDK message in base64 (RFC 4648, section 4).
- The encryption context has the pair ``field``, which is the field's name, so that a value opens in its own field only.
  The caller's pairs come with it; one whose value is ``@`` and the name of a member (``record=@id``) has the value that
  this member has in the record, which must be a string or an integer.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

PREFIX = "sealed:v1:"
"""What a sealed value begins with."""
Item = tuple[bytes, Mapping[str, str]]
"""A plaintext or message, and its encryption context."""
FIELD_PAIR = "field"
"""The pair of the encryption context that binds a value to its field."""

_BOM = "\ufeff"
_SPACE = re.compile(r"[ \t\r\n]*")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)


class InvalidRecord(ValueError):
    """A record that cannot be sealed or opened. The message says why, and holds nothing of the record."""


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRecord(f"not JSON: {name} is no JSON number")


# Numbers stay text: their values are of no use here, and long ones take time.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)


@dataclass(frozen=True, slots=True)
class Record:
    """A line, where the values of its fields stand in it (in order), and what binds them."""

    text: str = field(repr=False)
    places: Sequence[tuple[str, int, int]]
    context: Mapping[str, str] = field(repr=False)

    def to_seal(self) -> list[Item]:
        """Return the values as plaintexts with their contexts. Raises InvalidRecord if one is sealed already."""
        items: list[Item] = []
        for name, start, end in self.places:
            text = self.text[start:end]
            if _sealed(text) is not None:
                raise InvalidRecord(f"{name} is sealed already")
            items.append((text.encode(), {**self.context, FIELD_PAIR: name}))
        return items

    def to_open(self) -> list[Item]:
        """Return the messages in the values with their contexts. Raises InvalidRecord if a value is not sealed."""
        items: list[Item] = []
        for name, start, end in self.places:
            sealed = _sealed(self.text[start:end])
            if sealed is None:
                raise InvalidRecord(f"{name} is not sealed: it does not begin with {PREFIX}")
            try:
                message = b64decode(sealed, validate=True)
            except ValueError:
                raise InvalidRecord(f"{name} is damaged: what follows {PREFIX} is not base64") from None
            items.append((message, {**self.context, FIELD_PAIR: name}))
        return items

    def sealed(self, messages: Sequence[bytes]) -> bytes:
        """Return the line with messages in the place of the values."""
        return self._replaced([f'"{PREFIX}{b64encode(message).decode()}"' for message in messages])

    def opened(self, plaintexts: Sequence[bytes]) -> bytes:
        """Return the line with the values in the place of the messages. Raises InvalidRecord for other plaintexts."""
        return self._replaced(
            [_value(plaintext, name) for plaintext, (name, _, _) in zip(plaintexts, self.places, strict=True)]
        )

    def _replaced(self, texts: Sequence[str]) -> bytes:
        pieces, at = [], 0
        for text, (_, start, end) in zip(texts, self.places, strict=True):
            pieces += [self.text[at:start], text]
            at = end
        return "".join([*pieces, self.text[at:]]).encode()


class Selection:
    """Which fields are sealed, and which encryption context they get. Raises ValueError if the two do not fit."""

    def __init__(self, fields: Sequence[str], context: Mapping[str, str]) -> None:
        if FIELD_PAIR in context:
            raise ValueError(f"the pair {FIELD_PAIR!r} of the context is the name of the field: choose another name")
        self._context = {name: value for name, value in context.items() if not value.startswith("@")}
        self._context |= {name: value[1:] for name, value in context.items() if value.startswith("@@")}
        self._members = {name: value[1:] for name, value in context.items() if name not in self._context}
        self._fields = frozenset(fields)
        self._missing: frozenset[str] | None = None
        self._wanted = self._fields | set(self._members.values())
        if not fields or not all(all(path.split(".")) for path in self._wanted):
            raise ValueError("a field is the name of a member, or names joined by dots: email, user.email")
        if len(self._fields) != len(fields):
            raise ValueError("a field is given twice")
        if sealed := sorted(self._fields & set(self._members.values())):
            raise ValueError(f"{sealed[0]} is sealed, so no context can come from it")
        self._parents = frozenset(parent for path in self._wanted for parent in _parents(path))
        if both := sorted(self._wanted & self._parents):
            raise ValueError(f"{both[0]} is given, and so is a member of it: give one of the two")

    def missing(self) -> list[str]:
        """Return the fields that none of the records had so far; their names may be misspelt."""
        return sorted(self._missing or ())

    def record(self, line: bytes) -> Record | None:
        """Find the fields in a line; a blank line is None. Raises InvalidRecord."""
        try:
            text = line.decode()
            found = self._found(text)
        except UnicodeDecodeError as error:
            raise InvalidRecord(f"not UTF-8: byte {error.start + 1:,} of the line") from None
        except json.JSONDecodeError as error:
            raise InvalidRecord(f"not JSON: {error.msg} at character {error.pos + 1:,}") from None
        except RecursionError:
            raise InvalidRecord("nested too deeply") from None
        if found is None:
            return None
        self._missing = self._fields.difference(found) if self._missing is None else self._missing.difference(found)
        places = [
            (path, start, end)
            for path, (start, end) in found.items()
            if path in self._fields and text[start:end] != "null"
        ]
        members = {name: _bound(text, path, found.get(path)) for name, path in self._members.items()}
        return Record(text, places, self._context | members)

    def _found(self, text: str) -> dict[str, tuple[int, int]] | None:
        start = _skip(text, len(_BOM) if text.startswith(_BOM) else 0)
        if start == len(text):
            return None
        if text[start] != "{":
            raise InvalidRecord("not a JSON object")
        found: dict[str, tuple[int, int]] = {}
        end = _skip(text, self._object(text, start, "", found))
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return found

    def _object(self, text: str, at: int, prefix: str, found: dict[str, tuple[int, int]]) -> int:
        """Note where in an object the wanted values stand; return where the object ends."""
        at = _skip(text, at + 1)
        if text.startswith("}", at):
            return at + 1
        while True:
            name, start = _member(text, at)
            path = prefix + name
            if path in self._parents and text.startswith("{", start):
                end = self._object(text, start, f"{path}.", found)
            else:
                value, end = _DECODER.raw_decode(text, start)
                if path in self._parents and value is not None:
                    raise InvalidRecord(f"{path} is not an object, so no member of it can be found")
            if path in self._wanted:
                if path in found:
                    raise InvalidRecord(f"{path} is there twice")
                found[path] = (start, end)
            at = _skip(text, end)
            if text.startswith("}", at):
                return at + 1
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1)


def _member(text: str, at: int) -> tuple[str, int]:
    """Return the name of a member, and where its value begins."""
    if not text.startswith('"', at):
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    name, at = _DECODER.raw_decode(text, at)
    at = _skip(text, at)
    if not text.startswith(":", at):
        raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
    return name, _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _parents(path: str) -> Iterator[str]:
    while dot := path.rpartition(".")[0]:
        yield dot
        path = dot


def _sealed(text: str) -> str | None:
    """Return what follows the prefix in the text of a JSON value."""
    value: Any = _DECODER.decode(text) if text.startswith('"') else None
    return value.removeprefix(PREFIX) if isinstance(value, str) and value.startswith(PREFIX) else None


def _bound(text: str, path: str, place: tuple[int, int] | None) -> str:
    """Return the value of a member as it stands in an encryption context."""
    if place is None:
        raise InvalidRecord(f"{path} is missing, and the context needs it")
    value = text[slice(*place)]
    if value.startswith('"'):
        value = _DECODER.decode(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRecord(f"{path} holds half a surrogate pair, and the context needs it") from None
    elif not _INTEGER.fullmatch(value):
        raise InvalidRecord(f"{path} is neither a string nor an integer, and the context needs it")
    return value


def _value(plaintext: bytes, name: str) -> str:
    """Return a plaintext that is one JSON value and fits into a line."""
    try:
        text = plaintext.decode()
        if _DECODER.raw_decode(text)[1] == len(text) and "\n" not in text:
            return text
    except (ValueError, RecursionError):
        pass
    raise InvalidRecord(f"{name} holds no JSON value: it was not sealed as a field of a record")
