"""Lines of JSON of which some members are sealed: read, and written again with every other byte as it was.

A sealed member is a string: an AWS Encryption SDK message in base64, which holds the JSON text of the value. So
numbers, objects and null come back as they were, and whoever has the string can open it without these lines.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

_SPACE = re.compile(r"[ \t\r\n]*")
_SEALED = ("AgR4", "AgV4")
"""How base64 of a message begins: version 2, and suite 0x0478 or 0x0578."""
_WHOLE_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)


class BadLine(ValueError):
    """A line that cannot be taken; the text says why."""


@dataclass(frozen=True, slots=True)
class Members:
    """Which members of a line are sealed, and what each is bound to."""

    fields: Sequence[str]
    """Names of members. One that a line has not is passed over."""
    bound: Sequence[str]
    """Names of members that say which record it is; every line has them."""
    context: Mapping[str, str]

    def context_of(self, record: "Record", name: str) -> Mapping[str, str]:
        """Return the encryption context of a member. A value that is moved to another one or record does not open."""
        return {**self.context, "field": name, **{each: record.identity(each) for each in self.bound}}


class Record:
    """A line: one JSON object (RFC 8259). Raises BadLine for anything else.

    Members below the first level are parts of the value that holds them.
    """

    def __init__(self, line: bytes) -> None:
        try:
            self._text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise BadLine("is not UTF-8") from None
        if self._text.startswith("\ufeff"):
            raise BadLine("begins with a byte order mark: remove it")
        self._spans: dict[str, tuple[int, int]] = {}
        self._twice: set[str] = set()
        try:
            self._read()
        except (ValueError, IndexError):
            raise BadLine("is no JSON object") from None

    def value(self, name: str) -> str | None:
        """Return the JSON text of a member, or None if there is none of this name."""
        if name in self._twice:
            raise BadLine(f"has {name} twice")
        span = self._spans.get(name)
        return None if span is None else self._text[slice(*span)]

    def identity(self, name: str) -> str:
        """Return a member that says which record it is: a text, or a whole number as it is written."""
        text = self.value(name)
        if text is None:
            raise BadLine(f"has no {name}, which its sealed fields are bound to")
        if text.startswith('"'):
            return str(json.loads(text))
        if _WHOLE_NUMBER.fullmatch(text):
            return text
        raise BadLine(f"{name} must be a text or a whole number, because sealed fields are bound to it")

    def with_values(self, values: Mapping[str, str]) -> bytes:
        """Return the line with other JSON texts as the values of some of its members."""
        parts, at = [], 0
        for (start, end), value in sorted((self._spans[name], value) for name, value in values.items()):
            parts += [self._text[at:start], value]
            at = end
        return "".join((*parts, self._text[at:])).encode()

    def _read(self) -> None:
        text, at = self._text, self._skip(0)
        if text[at] != "{":
            raise ValueError
        at = self._skip(at + 1)
        if text[at] == "}":
            self._end(at)
            return
        while True:
            if text[at] != '"':
                raise ValueError
            name, at = _DECODER.raw_decode(text, at)
            at = self._skip(at)
            if text[at] != ":":
                raise ValueError
            start = self._skip(at + 1)
            _, end = _DECODER.raw_decode(text, start)
            if name in self._spans:
                self._twice.add(name)
            self._spans[name] = start, end
            at = self._skip(end)
            if text[at] == "}":
                self._end(at)
                return
            if text[at] != ",":
                raise ValueError
            at = self._skip(at + 1)

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return at if found is None else found.end()

    def _end(self, at: int) -> None:
        if self._skip(at + 1) != len(self._text):
            raise ValueError


def plaintext_of(name: str, value: str) -> bytes:
    """Return what is to be sealed of a member. Raises BadLine for one that is sealed already."""
    if _message_in(value) is not None:
        raise BadLine(f"field {name} is sealed already: leave it out of --fields, or decrypt the line first")
    return value.encode()


def sealed_value(message: bytes) -> str:
    """Return the JSON text of a sealed member."""
    return f'"{base64.b64encode(message).decode()}"'


def message_of(name: str, value: str) -> bytes:
    """Return the message that is a sealed member's. Raises BadLine for one that is not sealed."""
    message = _message_in(value)
    if message is None:
        raise BadLine(f"field {name} is not sealed: leave it out of --fields")
    return message


def opened_value(name: str, plaintext: bytes) -> str:
    """Return the JSON text that was sealed. Raises BadLine for anything but the text of one value, in one line."""
    try:
        text = plaintext.decode("utf-8")
        _, end = _DECODER.raw_decode(text)
        if end == len(text) and "\n" not in text and "\r" not in text:
            return text
    except (ValueError, IndexError):
        pass
    raise BadLine(f"field {name} holds no JSON value: it was not sealed from a line of JSON")


def _message_in(value: str) -> bytes | None:
    if value[:1] != '"' or value[1:5] not in _SEALED:
        return None
    try:
        message = base64.b64decode(value[1:-1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return message if sealed_value(message) == value else None


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _as_written(text: str) -> Any:
    return text


# A number is of any size and stays as it is written; NaN and Infinity are no JSON.
_DECODER = json.JSONDecoder(parse_int=_as_written, parse_float=_as_written, parse_constant=_refuse)
