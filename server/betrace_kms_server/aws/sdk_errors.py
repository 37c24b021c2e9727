"""What the AWS SDK raises whatever service was called: no answer, no credentials, too many calls, a broken environment.

Exceptions of botocore, aiobotocore and aiohttp wrap each other, and the one that says most is often the innermost. So
`trouble_of` searches the whole chain for what an operator must see by name: certificates, proxies, CA files, the
limit of open files, and answers that are not from AWS.
"""

import errno
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    InvalidConfigError,
    InvalidIMDSEndpointError,
    InvalidProxiesConfigError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

NETWORK = (TimeoutError, HTTPClientError, BotoConnectionError, IncompleteReadError, aiohttp.ClientError, OSError)
"""No answer."""
CREDENTIALS = (
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    InvalidIMDSEndpointError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
"""The SDK found no credentials."""

LOCAL_KINDS = frozenset({"ca_bundle", "endpoint", "open_files", "sdk"})
"""Kinds of trouble in which no request left this machine, so that they say nothing about the service."""

_NO_FILES = (errno.EMFILE, errno.ENFILE)
_CERTIFICATE_EXPIRED, _NOT_YET_VALID, _HOSTNAME_MISMATCH, _IP_MISMATCH = 10, 9, 62, 64  # OpenSSL, x509_vfy.h
_DEPTH = 10
_NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError)
_BAD_PEM = ("NO_CERTIFICATE_OR_CRL_FOUND", "PEM_LIB")


class NotFromAws(Exception):
    """What answered is no AWS service: a proxy's page, a captive portal, a wrong endpoint."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}, and not the form of an AWS answer")
        self.status = status


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong between this machine and AWS: a machine-readable kind, and a sentence with its next step."""

    kind: str
    message: str


def trouble_of(cause: BaseException, service: str) -> Trouble | None:
    """Return the trouble that an exception is about, or None if it names none. `service` is for the sentence."""
    chain = list(_chain(cause))
    for error in chain:
        if isinstance(error, OSError) and error.errno in _NO_FILES:
            return Trouble(
                "open_files",
                f"this machine has no file descriptor left for a connection to {service}: raise the limit of open files"
                " (ulimit -n, LimitNOFILE), and check what holds so many",
            )
    for error in chain:
        if (trouble := _certificate(error, service) or _proxy(error, service) or _other(error, service)) is not None:
            return trouble
    return None


def code_of(cause: BaseException | None) -> str:
    """Return AWS's code of an error; of one that AWS did not answer, nothing."""
    return (
        str(getattr(cause, "response", {}).get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""
    )


def status_of(cause: BaseException | None) -> int:
    """Return the HTTP status of an answer that AWS refused with, or 0."""
    answer = getattr(cause, "response", {}) if isinstance(cause, ClientError) else {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status if isinstance(status, int) else 0


def _chain(cause: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it wraps, the outermost first."""
    waiting, seen = [cause], set[int]()
    while waiting and len(seen) < _DEPTH:
        error = waiting.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        wrapped = getattr(error, "kwargs", None)
        inner = [wrapped.get("error")] if isinstance(wrapped, dict) else []
        inner += [getattr(error, name, None) for name in ("os_error", "certificate_error", "__cause__")]
        waiting += [each for each in inner if isinstance(each, BaseException)]


def _proxy(error: BaseException, service: str) -> Trouble | None:
    status = None
    if isinstance(error, aiohttp.ClientHttpProxyError):
        status = getattr(error, "status", 0)
    elif status_of(error) == 407:
        status = 407
    elif isinstance(error, NotFromAws) and error.status == 407:
        status = 407
    if status == 407:
        return Trouble(
            "proxy",
            f"the proxy before {service} asks for a user and a password (HTTP status 407): put them into HTTPS_PROXY,"
            " or add the host to NO_PROXY",
        )
    if status is not None:
        return Trouble(
            "proxy",
            f"the proxy before {service} refuses the connection (HTTP status {status}): allow the host there, or add it"
            " to NO_PROXY",
        )
    if isinstance(error, (aiohttp.ClientProxyConnectionError, ProxyConnectionError)):
        deeper = [inner for inner in _chain(error) if isinstance(inner, aiohttp.ClientHttpProxyError)]
        return (
            _proxy(deeper[0], service)
            if deeper and deeper[0] is not error
            else Trouble(
                "proxy",
                f"the proxy before {service} does not answer: check HTTPS_PROXY and HTTP_PROXY, or add the host to"
                " NO_PROXY",
            )
        )
    if isinstance(error, EndpointConnectionError) and _is_of_another_host(error):
        return _bad_proxy(service)
    if isinstance(error, InvalidProxiesConfigError):
        return _bad_proxy(service)
    if (
        isinstance(error, (aiohttp.InvalidURL, ValueError))
        and "proxy" in f"{type(error).__name__} {error.args}".lower()
    ):
        return _bad_proxy(service)
    return None


def _is_of_another_host(error: EndpointConnectionError) -> bool:
    """Return whether the host that could not be reached is not the endpoint's: then it is the proxy's."""
    fields = getattr(error, "kwargs", {})
    host = getattr(fields.get("error"), "host", None)
    return bool(host) and str(host) not in str(fields.get("endpoint_url", ""))


def _bad_proxy(service: str) -> Trouble:
    return Trouble(
        "proxy",
        f"the proxy before {service} cannot be used or reached: set HTTPS_PROXY and HTTP_PROXY to http://HOST:PORT",
    )


def _certificate(error: BaseException, service: str) -> Trouble | None:
    if isinstance(error, ssl.SSLCertVerificationError):  # aiohttp's is one as well, and wraps the one with the code
        codes = [getattr(inner, "verify_code", None) for inner in _chain(error)]
        return Trouble("tls", _untrusted(next((code for code in codes if isinstance(code, int)), 0), service))
    if isinstance(error, ssl.SSLError) and (getattr(error, "reason", None) in _BAD_PEM or "PEM" in str(error.args)):
        return _bad_ca_bundle(service)
    if isinstance(error, ssl.SSLError) or (isinstance(error, SSLError) and not _wraps_ssl(error)):
        return Trouble(
            "tls",
            f"the TLS handshake with {service} fails: check that what answers there speaks TLS 1.2 or newer, and that"
            " no proxy or firewall breaks the connection",
        )
    return None


def _wraps_ssl(error: BaseException) -> bool:
    return any(isinstance(inner, ssl.SSLError) for inner in _chain(error))


def _untrusted(code: int, service: str) -> str:
    if code in (_CERTIFICATE_EXPIRED, _NOT_YET_VALID):
        return (
            f"the certificate of {service} is expired or not yet valid: check this machine's clock, and renew the"
            " certificate if the endpoint is yours"
        )
    if code in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
        return (
            f"the certificate of {service} is for another host: check the endpoint, DNS, and whether a proxy answers in"
            " its place"
        )
    return (
        f"the certificate of {service} is not trusted: put the CA of the proxy or of the private endpoint into the file"
        " of AWS_CA_BUNDLE"
    )


def _other(error: BaseException, service: str) -> Trouble | None:
    if isinstance(error, HTTPClientError) and any(isinstance(inner, _NO_FILE) for inner in _chain(error)):
        return _bad_ca_bundle(service)
    if isinstance(error, (NotFromAws, ResponseParserError)):
        status = f" (HTTP status {error.status})" if isinstance(error, NotFromAws) else ""
        return Trouble(
            "not_aws",
            f"what answers in the place of {service} is not AWS{status}: check the endpoint, AWS_ENDPOINT_URL, and"
            " whether a proxy or a captive portal answers",
        )
    return None


def _bad_ca_bundle(service: str) -> Trouble:
    return Trouble(
        "ca_bundle",
        f"the CA file for {service} cannot be read: check that AWS_CA_BUNDLE names a file of PEM certificates that the"
        " daemon's user may read",
    )


# "Common errors" of the AWS API references, and what the SDKs retry as throttling.
DENIED_CODES = ("AccessDenied", "AccessDeniedException", "NotAuthorized")
THROTTLED_CODES = (
    "RequestLimitExceeded",
    "RequestThrottled",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
)
UNREACHABLE_CODES = ("InternalFailure", "ServiceUnavailable")
CREDENTIALS_CODES = (
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
