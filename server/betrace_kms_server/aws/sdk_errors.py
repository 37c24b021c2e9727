"""What the AWS SDK raises whatever service was called: no answer, no credentials, too many calls."""

import errno
import ssl
from collections.abc import Iterator

from botocore.exceptions import (
    ConfigParseError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    InvalidConfigError,
    InvalidIMDSEndpointError,
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

NETWORK = (TimeoutError, HTTPClientError, BotoConnectionError, IncompleteReadError)
"""No answer. To be asked before CREDENTIALS, of which OSError is one."""
CREDENTIALS = (
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    InvalidIMDSEndpointError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    OSError,  # a token or credentials file that is not there; the network's are wrapped in one of those above
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
"""The SDK found no credentials."""

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


NO_FILES = (errno.EMFILE, errno.ENFILE)


def network_problem(cause: BaseException) -> str | None:
    """Return what to do about a connection that failed before the service could answer, where the cause says it.

    Names no address and nothing of what was sent: a proxy's address may hold its password.
    """
    for each in _causes(cause):
        if isinstance(each, OSError) and each.errno in NO_FILES:
            return "the daemon has no file descriptor left: raise the limit of open files (ulimit -n, LimitNOFILE)"
        if isinstance(each, (SSLError, ssl.SSLError, ssl.CertificateError)):
            return (
                "the TLS certificate of what answers is not trusted or no TLS is spoken there: check AWS_CA_BUNDLE, the"
                " endpoint, and a proxy that opens TLS"
            )
        if isinstance(each, ProxyConnectionError) or "Proxy" in type(each).__name__:
            return "the proxy of HTTPS_PROXY does not let the call through: check its address, its login and NO_PROXY"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        inner = getattr(error, "kwargs", {}).get("error") if hasattr(error, "kwargs") else None
        if isinstance(inner, BaseException):
            yield inner
        error = error.__cause__ or error.__context__ or getattr(error, "os_error", None)
