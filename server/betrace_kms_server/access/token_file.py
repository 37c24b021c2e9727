"""The file of bearer tokens: one a line, `TOKEN` or `NAME TOKEN`; empty lines and lines that begin with # are skipped.

Clients send the first; the daemon accepts all of them, so that a token is replaced in three steps: add the new one
behind, move it to the front, remove the old one. What is read is kept as SHA-256 only.
"""

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import structlog

from betrace_kms_server.core.identities import check_identity
from betrace_kms_server.host.atomic_file import atomic_create
from betrace_kms_server.host.trusted_files import Signature, Untrusted, check_folder, read_trusted

log = structlog.get_logger()

DEFAULT_NAME = "token"
"""Identity of a token without a name."""
MAX_TOKENS = 64
MAX_TOKEN_CHARACTERS = 256
_MIN_TOKEN_CHARACTERS = 32
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
"""RFC 6750, section 2.1, b64token."""
_GROUP_READS = 0o040


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is accepted."""

    name: str
    digest: bytes = field(repr=False)
    """SHA-256 of the token."""


def digest_of(token: str) -> bytes:
    """Return what is kept of a token."""
    return sha256(token.encode("ascii")).digest()


def read_tokens(path: Path, group: int | None) -> tuple[Sequence[Token], Signature]:
    """Return the tokens of a file. Raises Untrusted if others can read or change it, or if a line is not valid.

    `group` may read the file.
    """
    check_folder(path.parent)
    content, signature = read_trusted(path, readers=0 if group is None else _GROUP_READS, follow=False)
    readable_by = signature[-1] if signature[5] & _GROUP_READS else group
    if readable_by != group:
        raise Untrusted(f"{path} can be read by group {readable_by}: run chgrp {group} on it (kms.server.token-group)")
    return parse_tokens(path, content), signature


def make_token_file(path: Path, group: int | None) -> None:
    """Write one new token of 256 random bits, unless the file is there. Raises Untrusted.

    The file is 0600, or 0640 for `group`. A folder that is missing is made, 0700 or 0750.
    """
    try:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, parents=True)
            _share(path.parent, group, 0o750)
        check_folder(path.parent)
        if path.exists() or path.is_symlink():
            return
        with atomic_create(path) as new:
            new.write_text(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n", "ascii")
            _share(new, group, 0o640)
    except PermissionError as cause:
        raise Untrusted(
            f"{path} cannot be made, or not be given to kms.server.token-group: let the daemon's user write its folder,"
            " and add that user to the group"
        ) from cause
    except OSError as cause:
        raise Untrusted(f"{path} cannot be made: {cause.strerror}") from cause
    log.info("A new token was made", file=str(path))


def _share(path: Path, group: int | None, mode: int) -> None:
    if group is not None:
        os.chown(path, -1, group, follow_symlinks=False)
        path.chmod(mode)


def parse_tokens(path: Path, content: bytes) -> Sequence[Token]:
    """Return the tokens of what a file holds. Raises Untrusted, which names the line and does not show it."""
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise Untrusted(f"{path} is not ASCII text: write one token of A-Za-z0-9._~+/- a line") from None
    tokens: dict[bytes, Token] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        token = _parse_line(f"{path}, line {number}", words)
        if tokens.setdefault(token.digest, token).name != token.name:
            raise Untrusted(f"{path}, line {number}: the token is on another line under another name: remove one")
    if not 1 <= len(tokens) <= MAX_TOKENS:
        raise Untrusted(f"{path} holds {len(tokens)} tokens: write 1 to {MAX_TOKENS}, one a line")
    return tuple(tokens.values())


def _parse_line(place: str, words: Sequence[str]) -> Token:
    """Parse one line. The errors must not show it, because it holds a token."""
    if len(words) > 2:
        raise Untrusted(f"{place}: write TOKEN or NAME TOKEN")
    try:
        name = check_identity(words[0]) if len(words) == 2 else DEFAULT_NAME
    except ValueError as cause:
        raise Untrusted(f"{place}: {cause}") from None
    token = words[-1]
    if not _MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS or _TOKEN.fullmatch(token) is None:
        raise Untrusted(
            f"{place}: a token has {_MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} of A-Za-z0-9._~+/-: make one by"
            " openssl rand -hex 32"
        )
    return Token(name, digest_of(token))
