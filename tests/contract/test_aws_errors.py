"""What provider aws makes of the errors of AWS and of its SDK.

Whatever a stub raises here carries a canary in every field, because no message of ours may hold what an SDK said.
"""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

import pytest
from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.providers.aws.errors import CODES
from botocore import exceptions as sdk

from tests.contract.samples import ARN
from tests.contract.stub_kms import ACTIONS, provider, stubbed

CANARY = "sdk-said-this"

MEANINGS: Mapping[type[KmsError], Sequence[str]] = {
    MasterKeyUnusable: (
        "NotFoundException",
        "DisabledException",
        "KMSInvalidStateException",
        "InvalidKeyUsageException",
        "InvalidArnException",
        "UnsupportedOperationException",
    ),
    DoesNotOpen: ("InvalidCiphertextException", "IncorrectKeyException"),
    AccessDenied: ("AccessDeniedException", "AccessDenied", "NotAuthorized"),
    Throttled: (
        "LimitExceededException",
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "RequestThrottled",
    ),
    KmsUnreachable: (
        "KeyUnavailableException",
        "DependencyTimeoutException",
        "KMSInternalException",
        "InternalFailure",
        "ServiceUnavailable",
    ),
    CredentialsUnavailable: (
        "ExpiredTokenException",
        "ExpiredToken",
        "RequestExpired",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
    ),
}
"""What each error code of KMS means to us."""

NETWORK = ("HTTPClientError", "ConnectionError", "IncompleteReadError")
CREDENTIALS = (
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "SSOError",
    "TokenRetrievalError",
)


def kinds(roots: Sequence[str]) -> list[Any]:
    """Return every error class of the SDK at and under these."""
    found = [getattr(sdk, root) for root in roots]
    for kind in found:
        found += [child for child in kind.__subclasses__() if child.__module__ == sdk.__name__ and child not in found]
    return found


def client_error(code: str, operation: str, status: int = 400) -> Any:
    """Return the SDK's error for an answer of AWS with this code."""
    answer = {
        "Error": {"Code": code, "Message": CANARY},
        "ResponseMetadata": {"HTTPStatusCode": status, "RequestId": CANARY},
        "message": CANARY,
    }
    return sdk.ClientError(answer, operation)


def sdk_error(kind: Any) -> BaseException:
    """Make an error of one of the SDK's classes, the canary in all its fields."""
    error: BaseException = kind(**{name: CANARY for _, name, _, _ in Formatter().parse(kind.fmt) if name})
    return error


async def outcome(cause: BaseException, action: str = "GenerateDataKey") -> BaseException:
    """Return what a caller of the provider gets when the SDK raises this."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        raise cause

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # what it is, is the test's business
            await ACTIONS[action](aws)
    return raised.value


def shown(error: BaseException) -> str:
    """Return everything of an error that may reach a caller."""
    return f"{error} {error!r} {getattr(error, 'message', '')} {getattr(error, 'metadata', '')}"


def test_every_code_has_a_meaning() -> None:
    """A code that is added to the provider's table, or dropped, is added or dropped here."""
    assert set(CODES) == {"ValidationException"}.union(*MEANINGS.values())


@pytest.mark.parametrize(
    ("action", "expected"),
    [("Decrypt", DoesNotOpen), ("GenerateDataKey", MasterKeyUnusable), ("DescribeKey", MasterKeyUnusable)],
)
async def test_a_request_that_kms_finds_malformed_is_a_matter_of_the_action(
    action: str, expected: type[KmsError]
) -> None:
    """What a caller gave to Decrypt does not open; of the other actions only the master key's id can be wrong."""
    assert type(await outcome(client_error("ValidationException", action), action)) is expected


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("expected", "code"), [(kind, code) for kind, codes in MEANINGS.items() for code in codes])
async def test_refusal_of_kms_becomes_our_error(expected: type[KmsError], code: str, action: str) -> None:
    """Each error code of KMS becomes the error that tells what to do, without the words of AWS."""
    cause = client_error(code, action)
    error = await outcome(cause, action)
    assert (expected, cause, False) == (type(error), error.__cause__, CANARY in shown(error))


@pytest.mark.parametrize("kind", kinds(NETWORK), ids=lambda kind: kind.__name__)
async def test_failing_network_is_kms_unreachable(kind: Any) -> None:
    """Whatever goes wrong between us and KMS, in all the SDK's ways, is one error, without the words of the SDK."""
    cause = sdk_error(kind)
    error = await outcome(cause)
    assert (KmsUnreachable, cause, False) == (type(error), error.__cause__, CANARY in shown(error))


@pytest.mark.parametrize("kind", kinds(CREDENTIALS), ids=lambda kind: kind.__name__)
async def test_failing_credentials_are_named_as_such(kind: Any) -> None:
    """Whatever keeps the SDK from credentials is one error, without the words of the SDK."""
    cause = sdk_error(kind)
    error = await outcome(cause)
    assert (CredentialsUnavailable, cause, False) == (type(error), error.__cause__, CANARY in shown(error))


@pytest.mark.parametrize("name", ["EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "SSLError"])
def test_list_of_network_errors_has_the_common_ones(name: str) -> None:
    """The errors that outages are made of are among those that are tried above."""
    assert name in {kind.__name__ for kind in kinds(NETWORK)}


@pytest.mark.parametrize("name", ["NoCredentialsError", "UnauthorizedSSOTokenError", "CredentialRetrievalError"])
def test_list_of_credential_errors_has_the_common_ones(name: str) -> None:
    """The errors that missing credentials are made of are among those that are tried above."""
    assert name in {kind.__name__ for kind in kinds(CREDENTIALS)}


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (client_error("SomethingNew", "GenerateDataKey", 500), KmsUnreachable),
        (client_error("SomethingNew", "GenerateDataKey", 503), KmsUnreachable),
        (client_error("", "GenerateDataKey", 502), KmsUnreachable),
        (client_error("SomethingNew", "GenerateDataKey", 429), Throttled),
    ],
)
async def test_unknown_code_is_told_by_its_http_status(cause: BaseException, expected: type[KmsError]) -> None:
    """With a code that we do not know, 5xx is an outage and 429 is throttling."""
    error = await outcome(cause)
    assert (expected, False) == (type(error), CANARY in shown(error))


@pytest.mark.parametrize(
    "cause",
    [
        client_error("SomethingNew", "GenerateDataKey", 400),
        sdk.ParamValidationError(report=CANARY),
        ValueError(CANARY),
    ],
)
async def test_what_nothing_foresaw_is_translated(cause: BaseException) -> None:
    """An error without a meaning of its own is a failure of the SDK at a call, without the words of the SDK."""
    error = await outcome(cause)
    assert (KmsUnreachable, cause, False) == (type(error), error.__cause__, CANARY in shown(error))


@pytest.mark.parametrize("operation", ["AssumeRoleWithWebIdentity", "AssumeRole", "GetRoleCredentials"])
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidIdentityToken", "ExpiredTokenException", "Throttling"])
async def test_refusal_of_sts_is_about_our_credentials(operation: str, code: str) -> None:
    """A refusal of another service, asked by the SDK for credentials first, does not pass for one of KMS."""
    error = await outcome(client_error(code, operation))
    assert (CredentialsUnavailable, False) == (type(error), CANARY in shown(error))


@pytest.mark.parametrize("action", ACTIONS)
async def test_denial_names_the_missing_permission(action: str) -> None:
    """Who reads that access is denied learns which action on which key to allow."""
    error = await outcome(client_error("AccessDeniedException", action), action)
    assert isinstance(error, AccessDenied)
    assert f"kms:{action} on {ARN}" in error.message
    assert {"action": f"kms:{action}", "master_key": ARN} == error.metadata
