"""Callers that send a bearer token (RFC 6750): `authorization: Bearer TOKEN`, as metadata of the call.

All tokens of the file are compared in constant time, by their SHA-256, so that neither the time nor the answer says
whether a token was almost right. Whatever is wrong, a caller gets one and the same text.
"""

from hmac import compare_digest
from pathlib import Path

import structlog

from betrace_kms_server.access.identity import Caller, Context
from betrace_kms_server.access.token_file import MAX_TOKEN_CHARACTERS, digest_of, make_token_file, read_tokens
from betrace_kms_server.core.errors import StartRefused, Unauthenticated
from betrace_kms_server.host.trusted_files import Signature, Untrusted, signature

log = structlog.get_logger()

AUTHORIZATION = "authorization"
_SCHEME = "bearer"
_MAX_HEADER_CHARACTERS = len(_SCHEME) + 8 + MAX_TOKEN_CHARACTERS


class TokenAuthenticator:
    """Accepts the tokens of a file, which is made if it is missing. Raises StartRefused for one that is not good."""

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
        self._callers = tuple((token.digest, Caller(token.name, "token", 1)) for token in tokens)

    def identify(self, context: Context) -> Caller:
        """Return whose token the call carries. Raises Unauthenticated."""
        header = None
        for name, value in context.invocation_metadata() or ():
            if name == AUTHORIZATION:
                if header is not None:
                    raise _unauthenticated()
                header = value
        if not isinstance(header, str) or len(header) > _MAX_HEADER_CHARACTERS or not header.isascii():
            raise _unauthenticated()
        scheme, _, token = header.partition(" ")
        if scheme.lower() != _SCHEME:
            raise _unauthenticated()
        digest, found = digest_of(token.strip(" ")), None
        for known, caller in self._callers:
            if compare_digest(known, digest):
                found = caller
        if found is None:
            raise _unauthenticated()
        return found

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
        self._callers = tuple((token.digest, Caller(token.name, "token", self._revision)) for token in tokens)
        log.info("The tokens were read again", file=str(self._path), tokens=len(tokens))


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated(
        "the caller is not authenticated: send a token of the daemon's kms.server.token-file as metadata"
        " authorization: Bearer TOKEN (our clients: KMS_TOKEN_FILE), or use a unix socket that has an identity"
    )
