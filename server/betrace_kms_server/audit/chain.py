"""The line format of the audit trail, and its verification: a chain of hashes in which every change shows.

A line is one compact JSON object (UTF-8, no spaces, members in this order) and a newline:

======================  ================================================================================
``seq``                 integer: 1 for the first line of a chain, then one more for each
``time``                string: when the operation was over, RFC 3339 in UTC with milliseconds
``operation``           string
``tenant``              string
``keyId``               string
``caller``              string
``identity``            string
``rule``                string
``result``              string
``cacheHit``            true, false, or null where no cache was asked
``kmsRequestIds``       strings, in the order of KMS's answers
``requestId``           string
``traceId``             string
``items``               integer
``unrecoverableAfter``  string, RFC 3339; only in lines about a shredding, and if it is known
``prev``                string: ``hash`` of the line before, 64 zeros in the first line of a chain
``hash``                string: SHA-256 of this line without ``hash``, 64 lower-case hexadecimal digits
======================  ================================================================================

What is hashed are the bytes of the line up to the comma before ``"hash"``, and a closing brace: the object as it was
before ``hash`` was added. No JSON is parsed to check a line, so no two spellings pass as one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import IO

import orjson

from betrace_kms_server.core.key_event import KeyEvent

TENANT_CHARACTERS = 128
TEXT_CHARACTERS = 256
MAX_KMS_REQUEST_IDS = 64
MAX_LINE_BYTES = 65_536
"""No line is longer, whatever came over the wire: a character takes at most six bytes."""

_LINE = re.compile(rb'(\{"seq":([0-9]{1,18}),.*,"prev":"([0-9a-f]{64})"),"hash":"([0-9a-f]{64})"\}\n')


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stands: number and hash of its last line."""

    seq: int
    hash: str


START = Head(0, "0" * 64)


@dataclass(frozen=True, slots=True)
class Line:
    """What links a line to the others."""

    head: Head
    prev: str
    intact: bool
    """Its hash is that of its content."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the daemon did not write so."""

    file: str
    line: int
    """Number of the line in its file, from 1."""
    seq: int | None
    """What the line says that its number in the chain is, if it says so."""
    problem: str


def format_line(event: KeyEvent, time_ns: int, before: Head) -> tuple[bytes, Head]:
    """Return an event's line, with its newline, and the head of the chain that it makes."""
    seq = before.seq + 1
    members = {
        "seq": seq,
        "time": f"{_second(time_ns // 1_000_000_000)}.{time_ns // 1_000_000 % 1000:03}Z",
        "operation": event.operation[:TEXT_CHARACTERS],
        "tenant": event.tenant_id[:TENANT_CHARACTERS],
        "keyId": event.key_id[:TEXT_CHARACTERS],
        "caller": event.caller[:TEXT_CHARACTERS],
        "identity": event.identity[:TEXT_CHARACTERS],
        "rule": event.rule[:TEXT_CHARACTERS],
        "result": event.result[:TEXT_CHARACTERS],
        "cacheHit": event.cache_hit,
        "kmsRequestIds": [each[:64] for each in event.kms_request_ids[:MAX_KMS_REQUEST_IDS]],
        "requestId": event.request_id[:TEXT_CHARACTERS],
        "traceId": event.trace_id[:TEXT_CHARACTERS],
        "items": event.items,
        **({"unrecoverableAfter": event.unrecoverable_after} if event.unrecoverable_after else {}),
        "prev": before.hash,
    }
    try:
        content = orjson.dumps(members)
    except orjson.JSONEncodeError:  # a lone surrogate, which UTF-8 does not have
        content = orjson.dumps({name: _encodable(value) for name, value in members.items()})
    digest = sha256(content).hexdigest()
    return b'%b,"hash":"%b"}\n' % (content[:-1], digest.encode()), Head(seq, digest)


@lru_cache(1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _encodable(value: object) -> object:
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def parse_line(line: bytes) -> Line | None:
    """Return the links of a line that ends in its newline, or None if it is no line of an audit trail."""
    parts = _LINE.fullmatch(line)
    if parts is None:
        return None
    content, seq, prev, digest = parts.groups()
    return Line(Head(int(seq), digest.decode()), prev.decode(), sha256(content + b"}").hexdigest() == digest.decode())


class ChainVerifier:
    """Reads the files of a trail, oldest first, in constant memory, and goes on behind what it finds.

    `head` is the hash of a line that must be there, noted earlier: without it no one sees that the last lines are gone.
    """

    def __init__(self, head: str | None = None) -> None:
        self.lines = 0
        self.first: int | None = None
        self.last: Head | None = None
        self._aside: Head | None = None
        """Last line of a piece that is out of order: the lines that follow it are no findings of their own."""
        self._damaged = 0
        """Lines since the last intact one. Each may have been any line, so each excuses one that is missing."""
        self._missing_head = head
        self._place = ("", 0)

    def read(self, name: str, file: IO[bytes]) -> Iterator[Finding]:
        """Yield what is wrong in the next file."""
        self._place = (name, 0)
        for number, text in enumerate(_lines(file), 1):
            self._place = (name, number)
            self.lines += 1
            torn = not text.endswith(b"\n")
            line = parse_line(text + b"\n" if torn else text)
            problem = self._judge(line)
            if torn:
                problem = "torn: the file ends before the line does"
            if problem:
                yield Finding(name, number, line.head.seq if line else None, problem)

    def finish(self) -> Iterator[Finding]:
        """Yield what is wrong with the whole, after the last file."""
        if self._missing_head is not None:
            problem = f"the line with hash {self._missing_head} is not there: lines were cut off, or all was rewritten"
            yield Finding(*self._place, None, problem)

    def _judge(self, line: Line | None) -> str | None:
        if line is None or not line.intact:
            self._damaged += 1
            return "changed: its hash is not that of its content" if line else "no line of an audit trail"
        damaged, self._damaged = self._damaged, 0
        before, here = self.last, line.head
        if here.hash == self._missing_head:
            self._missing_head = None
        if before is None:
            self.first, self.last = here.seq, here
            return _BROKEN if here.seq == 1 and line.prev != START.hash else None
        if _follows(line, self._aside):
            self._aside = here
            if here.seq > before.seq:
                self.last, self._aside = here, None
            return None
        if here.seq <= before.seq:
            self._aside = here
            return f"out of order or repeated: seq {here.seq} comes after seq {before.seq}"
        self.last = here
        absent = here.seq - before.seq - 1
        if absent > damaged:
            count = absent - damaged
            return f"{count} {'line is' if count == 1 else 'lines are'} missing between seq {before.seq} and {here.seq}"
        return _BROKEN if absent == 0 and line.prev != before.hash else None


_BROKEN = "broken link: the line before it is not the one that it was chained to"


def _follows(line: Line, before: Head | None) -> bool:
    return before is not None and (line.head.seq, line.prev) == (before.seq + 1, before.hash)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines with their newlines; of one that is too long to be ours, only the end."""
    while text := file.readline(MAX_LINE_BYTES):
        while len(text) == MAX_LINE_BYTES and not text.endswith(b"\n"):
            text = b"..." + file.readline(MAX_LINE_BYTES - 3)
        yield text
