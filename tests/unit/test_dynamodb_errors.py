"""What the AWS SDK raises for a call to DynamoDB becomes one sentence that says what to do."""

from typing import Any

import pytest
from betrace_kms_server.stores.dynamodb.errors import CODES, is_contention, is_refusal, translated
from botocore import exceptions as sdk

TABLE = "arn:aws:dynamodb:us-east-1:123456789012:table/keys"
SECRET = "the words of AWS, with an account and a principal"


def refused(code: str, action: str = "PutItem", *, status: int = 400, message: str = SECRET, **more: Any) -> Any:
    """Return a ClientError as botocore makes it of an answer."""
    answer = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **more,
    }
    return sdk.ClientError(answer, action)


@pytest.mark.parametrize("code", CODES)
def test_every_code_says_what_to_do(code: str) -> None:
    """Each known code becomes our error, with a thing to do after the colon, and without AWS's own words."""
    error = translated(refused(code), "PutItem", TABLE)
    assert error is not None
    assert (True, False) == (len(error.message.partition(": ")[2]) > 10, SECRET in error.message)


@pytest.mark.parametrize(
    ("action", "message", "permission"),
    [
        (
            "TransactWriteItems",
            f"User: arn:aws:sts::123456789012:assumed-role/kms/pod is not authorized to perform: dynamodb:UpdateItem on"
            f" resource: {TABLE} because no identity-based policy allows the dynamodb:UpdateItem action",
            "dynamodb:UpdateItem",
        ),
        ("TransactWriteItems", "no", "dynamodb:PutItem and dynamodb:UpdateItem"),
        ("Scan", "no", "dynamodb:Scan"),
    ],
)
def test_denial_names_the_permission(action: str, message: str, permission: str) -> None:
    """The permission is AWS's own name for it where AWS says it, and never the principal."""
    error = translated(refused("AccessDeniedException", action, message=message), action, TABLE)
    assert error is not None
    assert error.message.startswith(f"DynamoDB denies {permission} on {TABLE}: ")
    assert "assumed-role" not in error.message
    assert {"action": permission, "table": TABLE} == error.metadata


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (refused("Unheard", status=500), "no answer from DynamoDB to dynamodb:PutItem"),
        (refused("Unheard", status=503), "no answer from DynamoDB"),
        (refused("Unheard", status=403), "DynamoDB denies dynamodb:PutItem"),
        (refused("AccessDenied", "AssumeRoleWithWebIdentity"), "AWS credentials for the key store"),
        (TimeoutError(), "no answer from DynamoDB"),
        (sdk.EndpointConnectionError(endpoint_url="http://x"), "no answer from DynamoDB"),
        (sdk.ReadTimeoutError(endpoint_url="http://x"), "no answer from DynamoDB"),
        (sdk.ConnectionClosedError(endpoint_url="http://x"), "no answer from DynamoDB"),
        (sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2), "no answer from DynamoDB"),
        (sdk.NoCredentialsError(), "AWS credentials for the key store"),
        (sdk.CredentialRetrievalError(provider="x", error_msg="y"), "AWS credentials for the key store"),
        (OSError("reset"), "no answer from DynamoDB"),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_known_code_is_told_by_its_kind(cause: Exception, words: str) -> None:
    """Networks, credentials and statuses are told apart."""
    error = translated(cause, "PutItem", TABLE)
    assert error is not None
    assert words in error.message


@pytest.mark.parametrize(
    "cause",
    [
        ValueError(SECRET),
        refused("ValidationException"),
        refused("TransactionCanceledException", CancellationReasons=[{"Code": "ValidationError"}]),
        sdk.ParamValidationError(report="x"),
    ],
    ids=["value", "validation", "transaction", "parameters"],
)
def test_what_nothing_foresaw_is_translated(cause: Exception) -> None:
    """An error without a meaning of its own is a failure of the key store, and never shows the words of the SDK."""
    error = translated(cause, "PutItem", TABLE)
    assert ("dynamodb:PutItem" in error.message, False) == (True, SECRET in error.message)


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (refused("ConditionalCheckFailedException"), "refusal"),
        (refused("TransactionCanceledException", CancellationReasons=[{"Code": "ConditionalCheckFailed"}]), "refusal"),
        (refused("TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}]), "contention"),
        (
            refused(
                "TransactionCanceledException",
                CancellationReasons=[{"Code": "TransactionConflict"}, {"Code": "ConditionalCheckFailed"}],
            ),
            "refusal",
        ),
        (refused("TransactionConflictException"), "contention"),
        (
            refused(
                "TransactionCanceledException",
                message="Transaction cancelled, please refer cancellation reasons for specific reasons"
                " [None, ConditionalCheckFailed]",
            ),
            "refusal",
        ),
        (
            refused(
                "TransactionCanceledException",
                message="Transaction cancelled, please refer cancellation reasons for specific reasons"
                " [TransactionConflict, None]",
            ),
            "contention",
        ),
        (refused("TransactionCanceledException", CancellationReasons=[{"Code": "ValidationError"}, {}]), "neither"),
        (refused("ThrottlingException"), "neither"),
        (TimeoutError(), "neither"),
    ],
)
def test_lost_race_is_told_from_contention(cause: BaseException, told: str) -> None:
    """A condition that does not hold ends a try; what only stood in the way does not."""
    assert (told == "refusal", told == "contention") == (is_refusal(cause), is_contention(cause))
