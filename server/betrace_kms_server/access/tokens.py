"""Callers that send a bearer token (RFC 6750): `authorization: Bearer TOKEN`, as metadata of the call.

All tokens of the file are compared in constant time, by their SHA-256, so that neither the time nor the answer says
whether a token was almost right. Whatever is wrong, a caller gets one and the same text.
"""

from collections.abc import Iterable, Sequence
from hmac import compare_digest
from pathlib import Path
from typing import Any

import structlog

from betrace_kms_server.access.identity import Caller, Context, Recognised
from betrace_kms_server.access.token_file import MAX_TOKEN_CHARACTERS, Token, digest_of, make_token_file, read_tokens
from betrace_kms_server.core.errors import StartRefused, Unauthenticated
from betrace_kms_server.host.trusted_files import Signature, Untrusted, signature

log = structlog.get_logger()

AUTHORIZATION = "authorization"
_SCHEME = "bearer"
_MAX_SEEN = 256
_MAX_HEADER_CHARACTERS = len(_SCHEME) + 8 + MAX_TOKEN_CHARACTERS


class TokenAuthenticator:
    """Accepts the tokens of a file, which is made if it is missing. Raises StartRefused for one that is not good."""

    by_connection = False

    def __init__(self, path: Path, group: int | None) -> None:
        self._path = path
        self._group = group
        try:
            make_token_file(path, group)
            tokens, found = read_tokens(path, group)
        except Untrusted as cause:
            raise StartRefused(f"kms.server.token-file: {cause}") from None
        self._signature: Signature | None = found
        self._revision = 1
        self._accepted = _Accepted(tokens, self._revision)

    def recognised(self, metadata: Iterable[Any]) -> Recognised | None:
        """Return whose token the metadata holds, or None without one or with a wrong one."""
        header = None
        for name, value in metadata:
            if name == AUTHORIZATION:
                if header is not None:
                    return None
                header = value
        accepted = self._accepted
        return accepted.seen.get(header) or accepted.check(header)

    def identify(self, context: Context) -> Caller:
        """Raise Unauthenticated: whoever sends a token is recognised by it."""
        raise Unauthenticated(
            "the caller is not authenticated: send a token of the daemon's kms.server.token-file as metadata"
            " authorization: Bearer TOKEN (our clients: KMS_TOKEN_FILE), or use a unix socket that has an identity"
        )

    def refresh(self) -> None:
        """Read the file again if it changed."""
        now = signature(self._path, follow=False)
        if now != self._signature:
            self._signature = now
            self.reload()

    def reload(self) -> None:
        """Read the file again. One that is not good is logged, and the tokens stay what they were."""
        try:
            tokens, self._signature = read_tokens(self._path, self._group)
        except Untrusted as cause:
            log.error(f"The tokens stay what they were: {cause}")  # noqa: G004  # a sentence
            return
        self._revision += 1
        self._accepted = _Accepted(tokens, self._revision)
        log.info("The tokens were read again", file=str(self._path), tokens=len(tokens))


class _Accepted:
    """The tokens of one revision of the file, and the headers that held one of them.

    A header that was accepted is found again by its own text: hashing it costs 3 % of a call. A lookup compares texts
    only if their hashes are equal, which are keyed by a secret of the process (PEP 456), so its time says nothing about
    a header that is there. Reading the file again drops all.
    """

    def __init__(self, tokens: Sequence[Token], revision: int) -> None:
        self.seen: dict[Any, Recognised] = {}
        self._callers = [(token.digest, Caller(token.name, "token", revision)) for token in tokens]

    def check(self, header: object) -> Recognised | None:
        """Return whose token a header holds, if it is one. All are compared, and each in constant time."""
        if not isinstance(header, str) or len(header) > _MAX_HEADER_CHARACTERS or not header.isascii():
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != _SCHEME:
            return None
        digest, found = digest_of(token.strip(" ")), None
        for known, caller in self._callers:
            if compare_digest(known, digest):
                found = caller
        if found is None:
            return None
        if len(self.seen) >= _MAX_SEEN:  # some client writes the same token in many ways
            self.seen.clear()
        return self.seen.setdefault(header, Recognised(found))
