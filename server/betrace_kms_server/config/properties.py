"""Reads a Java properties file, and refuses what would silently be another file than the operator wrote.

The format accepts nearly everything: UTF-16, YAML and JSON are properties files too, with names that are not ours. What
the format cannot express is therefore recognized here, before the entries are used. Each ValueError says what to do.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import javaproperties

MAX_BYTES = 1024 * 1024
"""Longest file that is read: /dev/zero has no end."""

_UTF16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_LINE_END = re.compile(r"\r\n|\r|\n")
_SECTION = re.compile(r"^[ \t\f]*\[[^\]\r\n]*\][ \t]*(?:[#;].*)?$", re.MULTILINE)
_YAML = re.compile(r"^(?:---|[ \t]*-[ \t]|[ \t]*[\"']?[\w.-]+[\"']?:[ \t]*$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name with its value, and the line (counted from 1) on which it begins."""

    name: str
    value: str
    line: int
    continued_by: tuple[str, ...]
    """Names that the continued lines would set if they stood alone."""


def read_text(file: Path, *, otherwise: str | None = None) -> str:
    """Return a file's text without a byte order mark: UTF-8, or the encoding `otherwise`. Raises OSError, ValueError.

    Quarkus reads UTF-8, java.util.Properties Latin-1.
    """
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES:,} bytes, as no configuration is: give the right file")
    if data.startswith(_UTF16_OR_32):
        raise ValueError("it is UTF-16 or UTF-32: save it as UTF-8")
    if b"\0" in data:
        line = 1 + len(re.findall(rb"\r\n|\r|\n", data[: data.index(b"\0")]))
        raise ValueError(f"line {line} holds a zero byte, so it is UTF-16 or damaged: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if otherwise is None:
            raise ValueError("it is not UTF-8: save it as UTF-8") from None
        return data.removeprefix(codecs.BOM_UTF8).decode(otherwise)


def parse_properties(text: str) -> Sequence[Entry]:
    """Return the entries of a properties file in their order. Raises ValueError for what is no properties file."""
    _refuse_other_formats(text)
    entries, line = [], 1
    for element in _elements(text):
        if isinstance(element, javaproperties.KeyValue):
            continued = _LINE_END.split(element.source)[1:]
            names = tuple(
                part.key
                for following in continued
                for part in _parsed(following)
                if isinstance(part, javaproperties.KeyValue) and ("=" in following or ":" in following)
            )
            entries.append(Entry(element.key, element.value, line, names))
        line += len(_LINE_END.findall(element.source))
    return entries


def looks_like_yaml(text: str) -> bool:
    """Return whether a text that gave no setting has the look of YAML."""
    return _YAML.search(text) is not None


def _elements(text: str) -> Sequence[javaproperties.PropertiesElement]:
    try:
        elements = list(javaproperties.parse(text))
        "".join(each.key + each.value for each in elements if isinstance(each, javaproperties.KeyValue)).encode()
    except javaproperties.InvalidUEscapeError as cause:
        raise ValueError(f"it holds {cause.escape}: write \\u and four hexadecimal digits, and \\\\ for \\") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair, as \\uD83D alone is: write the character itself") from None
    return elements


def _parsed(line: str) -> Sequence[javaproperties.PropertiesElement]:
    try:
        return list(javaproperties.parse(line))
    except ValueError:  # only a part of an escape sequence that goes on in the next line
        return []


def _refuse_other_formats(text: str) -> None:
    start = text.lstrip()
    if start.startswith(("{", "[{")):
        raise ValueError("it is JSON: write a properties file, NAME=VALUE on each line")
    if start.startswith("<"):
        raise ValueError("it is XML: write a properties file, NAME=VALUE on each line")
    if section := _SECTION.search(text):
        line = 1 + len(_LINE_END.findall(text[: section.start()]))
        raise ValueError(f"line {line} is a section, which a properties file has not: write whole names, NAME=VALUE")
