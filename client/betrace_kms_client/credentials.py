"""By what a client proves who it is: the daemon's token file, and certificates for mutual TLS.

What is not given comes from the environment: KMS_TOKEN_FILE, KMS_TLS_CA_FILE, KMS_TLS_CERT_FILE, KMS_TLS_KEY_FILE. A
token is read again when its file changes, and when the daemon refused it. Certificates are read when a client is made.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio

from betrace_kms_client.channel import OPTIONS
from betrace_kms_client.errors import InvalidRequest, Unauthenticated

File: TypeAlias = "str | os.PathLike[str] | None"
Metadata: TypeAlias = "tuple[tuple[str, str | bytes], ...] | None"

VARIABLES = ("KMS_TOKEN_FILE", "KMS_TLS_CA_FILE", "KMS_TLS_CERT_FILE", "KMS_TLS_KEY_FILE")
_CHECK_SECONDS = 1.0
"""How often the token file is checked for a change."""


@dataclass(frozen=True, slots=True)
class Files:
    """Files of credentials, in the order of VARIABLES; None where there is none."""

    token: Path | None = None
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def chosen(token_file: File, tls_ca_file: File, tls_cert_file: File, tls_key_file: File) -> Files:
    """Return the files that are given, and those of the environment for the others. An empty name is none."""
    given = (token_file, tls_ca_file, tls_cert_file, tls_key_file)
    names = [
        os.environ.get(variable) if file is None else file for file, variable in zip(given, VARIABLES, strict=True)
    ]
    return Files(*(Path(name) if name else None for name in names))


class Token:
    """The first token of a file, as metadata of calls."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._next_check = 0.0
        self._metadata: Metadata = None

    def metadata(self) -> Metadata:
        """Return what a call carries, or None without a file. Raises Unauthenticated if the file cannot be read."""
        if self._file is not None and time.monotonic() >= self._next_check:
            self._read(self._file)
        return self._metadata

    def renewed(self) -> bool:
        """Read the file again, and return whether its token is another one than before."""
        before = self._metadata
        if self._file is not None:
            self._seen = None
            self._read(self._file)
        return self._metadata != before

    def _read(self, file: Path) -> None:
        try:
            status = file.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._metadata = (("authorization", f"Bearer {_first(file.read_text('ascii').splitlines())}"),)
                self._seen = seen
        except (OSError, ValueError) as cause:
            why = cause.strerror if isinstance(cause, OSError) else "it holds no token"
            raise Unauthenticated(f"token file {file} cannot be read: {why}: is it the daemon's?") from None
        self._next_check = time.monotonic() + _CHECK_SECONDS


def _first(lines: Sequence[str]) -> str:
    """Return the token of the first line that has one: the last word of it, behind a name."""
    for line in lines:
        words = line.split()
        if words and not words[0].startswith("#"):
            return words[-1]
    raise ValueError("no token")


def open_channel(target: str, files: Files) -> grpc.Channel:
    """Return a channel for threads; a TCP target gets TLS if there are files for it."""
    if (credentials := _tls(target, files)) is not None:
        return grpc.secure_channel(target, credentials, options=OPTIONS)
    return grpc.insecure_channel(target, options=OPTIONS)


def open_aio_channel(target: str, files: Files) -> grpc.aio.Channel:
    """Return a channel for asyncio; a TCP target gets TLS if there are files for it."""
    if (credentials := _tls(target, files)) is not None:
        return grpc.aio.secure_channel(target, credentials, options=OPTIONS)
    return grpc.aio.insecure_channel(target, options=OPTIONS)


def _tls(target: str, files: Files) -> grpc.ChannelCredentials | None:
    if target.startswith("unix:") or not (files.authority or files.certificate or files.key):
        return None
    if (files.certificate is None) != (files.key is None):
        raise InvalidRequest("a client certificate needs its key: give both tls_cert_file and tls_key_file, or neither")
    contents = [_content(file) for file in (files.authority, files.key, files.certificate)]
    return grpc.ssl_channel_credentials(*contents)


def _content(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as cause:
        raise Unauthenticated(f"{file} cannot be read: {cause.strerror}") from None
