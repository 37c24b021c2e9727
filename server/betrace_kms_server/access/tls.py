"""The daemon's own certificate and the authority of its clients, read again when they change.

SPIRE's helper and cert-manager write the files anew before they expire, by a rename or by a symbolic link that is
exchanged. Each new connection gets what is there; a connection that is open keeps what it has, for at most an hour.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.trusted_files import Signature, Untrusted, read_trusted, signature

log = structlog.get_logger()

_ANYBODY_READS = 0o044
_GROUP_READS = 0o040
"""Kubernetes makes mounted secrets readable for the pod's fsGroup."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: certificate chain, its private key, and the certificates that client certificates must come from."""

    certificate: Path
    key: Path
    client_authority: Path


class TlsCredentials:
    """Credentials of a gRPC server. Raises StartRefused for files that are not good."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        try:
            self._configuration, self._signatures = _load(files)
        except Untrusted as cause:
            raise StartRefused(f"mutual TLS: {cause}") from None
        self.credentials = grpc.dynamic_ssl_server_credentials(self._configuration, self._current, True)

    def refresh(self) -> None:
        """Read the files again if one of them changed."""
        files = self._files
        now = tuple(signature(path, follow=True) for path in (files.certificate, files.key, files.client_authority))
        if now != self._signatures:
            self._signatures = now
            self.reload()

    def reload(self) -> None:
        """Read the files again. What is not good is logged, and new connections get what was good before."""
        try:
            self._configuration, self._signatures = _load(self._files)
        except Untrusted as cause:
            log.error(f"The certificate stays what it was: {cause}")  # noqa: G004  # a sentence
            return
        log.info("The certificate was read again", file=str(self._files.certificate))

    def _current(self) -> grpc.ServerCertificateConfiguration:
        """Called by gRPC in a thread of its own, for each new connection."""
        return self._configuration


def _load(files: TlsFiles) -> tuple[grpc.ServerCertificateConfiguration, tuple[Signature | None, ...]]:
    """Return what gRPC takes, and the signatures of the files. Raises Untrusted."""
    chain, of_chain = read_trusted(files.certificate, readers=_ANYBODY_READS, follow=True)
    key, of_key = read_trusted(files.key, readers=_GROUP_READS, follow=True)
    authority, of_authority = read_trusted(files.client_authority, readers=_ANYBODY_READS, follow=True)
    certificate = _certificates(files.certificate, chain)[0]
    _certificates(files.client_authority, authority)
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise Untrusted(f"{files.certificate} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}Z: renew it")
    if _public_key_of(files.key, key) != _spki(certificate):
        raise Untrusted(f"{files.key} is not the key of {files.certificate}: give the pair that was issued together")
    configuration = grpc.ssl_server_certificate_configuration([(key, chain)], authority)
    return configuration, (of_chain, of_key, of_authority)


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise Untrusted(f"{path} holds no certificate in PEM: it must begin with -----BEGIN CERTIFICATE-----") from None


def _public_key_of(path: Path, pem: bytes) -> bytes:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):  # TypeError: it has a password
        raise Untrusted(f"{path} holds no private key in PEM without a password") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
