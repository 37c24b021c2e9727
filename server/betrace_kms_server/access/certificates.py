"""Callers that have a client certificate: mutual TLS.

The name is the SPIFFE id, the one URI of the certificate (SPIFFE X509-SVID, section 2); without any URI it is the
subject as RFC 4514 writes it. gRPC checked the chain, dates and key before the first call of the connection.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from cryptography import x509

from betrace_kms_server.access.identity import Caller, Context, Recognised
from betrace_kms_server.core.errors import Unauthenticated

_PEM = "x509_pem_cert"
_SPIFFE = "spiffe://"
_MAX_NAME_CHARACTERS = 2048
"""SPIFFE ID, section 2.3."""


class CertificateAuthenticator:
    """Names callers by the certificate of their connection."""

    by_connection = True

    def recognised(self, metadata: Iterable[Any]) -> Recognised | None:
        """Return None: metadata is what the caller says."""
        return None

    def identify(self, context: Context) -> Caller:
        """Return whose certificate it is. Raises Unauthenticated for a certificate without a usable name."""
        found = list(context.auth_context().get(_PEM, ()))
        if len(found) != 1:
            raise _unauthenticated()
        return _caller_of(found[0])


@lru_cache(1024)
def _caller_of(pem: bytes) -> Caller:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        name = _name_of(certificate)
    except ValueError:
        name = ""
    if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
        raise _unauthenticated()
    return Caller(name, "certificate")


def _name_of(certificate: x509.Certificate) -> str:
    """Return a certificate's name, or "" if it has none that is unique."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if not uris:
        return certificate.subject.rfc4514_string()
    is_one = len(uris) == 1 and uris[0].startswith(_SPIFFE) and len(uris[0]) > len(_SPIFFE)
    return uris[0] if is_one else ""


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated(
        "the caller is not authenticated: its certificate needs one URI, a SPIFFE id, or no URI and a subject"
    )
