"""What the AWS SDK raises whatever service was called: no answer, no credentials, too many calls."""

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
