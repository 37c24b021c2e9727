"""What the AWS SDK raises, as our errors: one table for KMS's codes, one list each for the network and credentials."""

import re
from collections.abc import Callable, Mapping

from botocore.exceptions import ClientError

from betrace_kms_server.aws import sdk_errors as aws_sdk
from betrace_kms_server.aws.arns import region_of
from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.host.process import descriptor_shortage


def _unusable(_action: str, arn: str) -> KmsError:
    return MasterKeyUnusable(
        f"the master key {arn} cannot be used: check that it exists in this region, is enabled, is not pending"
        " deletion, and is a symmetric key for encrypt and decrypt"
    )


def _denied(action: str, arn: str) -> KmsError:
    return AccessDenied(
        f"KMS denies kms:{action} on {arn}: allow this action to the daemon's role in its IAM policy and in the key"
        " policy",
        metadata={"action": f"kms:{action}", "master_key": arn},
    )


def _throttled(action: str, arn: str) -> KmsError:
    return Throttled(f"KMS throttles kms:{action}{_where(arn)}: try again later, or ask AWS for a higher request quota")


def _unreachable(action: str, arn: str) -> KmsError:
    return KmsUnreachable(
        descriptor_shortage()
        or f"no answer from KMS to kms:{action}{_where(arn)}: check aws.kms.region, the route to KMS, and"
        " aws.kms.endpoint if it is set"
    )


def _where(arn: str) -> str:
    region = region_of(arn)
    return f" in {region}" if region else ""


def _credentials(_action: str, _arn: str) -> KmsError:
    return CredentialsUnavailable(
        "the daemon's own AWS credentials are missing, expired or refused: check its role, its environment and the"
        " machine's clock"
    )


def _does_not_open(_action: str, _arn: str) -> KmsError:
    return DoesNotOpen()


def _invalid(action: str, arn: str) -> KmsError:
    """KMS found the request itself wrong. Of Decrypt's, the blob is a caller's; of the others, only the key's id."""
    return DoesNotOpen() if action == "Decrypt" else _unusable(action, arn)


CODES: Mapping[str, Callable[[str, str], KmsError]] = {
    # AWS KMS API reference, "Errors" of each of the four actions
    "NotFoundException": _unusable,
    "DisabledException": _unusable,
    "KMSInvalidStateException": _unusable,
    "InvalidKeyUsageException": _unusable,
    "InvalidArnException": _unusable,
    "UnsupportedOperationException": _unusable,
    "InvalidCiphertextException": _does_not_open,
    "IncorrectKeyException": _does_not_open,
    "ValidationException": _invalid,
    "KeyUnavailableException": _unreachable,
    "DependencyTimeoutException": _unreachable,
    "KMSInternalException": _unreachable,
    "LimitExceededException": _throttled,
    **dict.fromkeys(aws_sdk.DENIED_CODES, _denied),
    **dict.fromkeys(aws_sdk.THROTTLED_CODES, _throttled),
    **dict.fromkeys(aws_sdk.UNREACHABLE_CODES, _unreachable),
    **dict.fromkeys(aws_sdk.CREDENTIALS_CODES, _credentials),
}


_PRINCIPAL = re.compile(r"User: (arn:[!-~]{1,2048}) is not authorized")


def translated(cause: BaseException, action: str, arn: str) -> KmsError | None:
    """Return our error for an SDK's, or None where there is none: then it is a defect of ours, and INTERNAL."""
    if isinstance(cause, ClientError):
        error = _of_answer(cause, action, arn)
        if isinstance(error, AccessDenied):
            said = _PRINCIPAL.search(cause.response.get("Error", {}).get("Message", ""))
            error.principal = said[1] if said else None
        return error
    if isinstance(cause, aws_sdk.NETWORK):
        return _unreachable(action, arn)
    return _credentials(action, arn) if isinstance(cause, aws_sdk.CREDENTIALS) else None


def _of_answer(cause: ClientError, action: str, arn: str) -> KmsError | None:
    if cause.operation_name != action:  # the SDK asked STS for credentials first, and STS refused
        return _credentials(action, arn)
    known = CODES.get(cause.response.get("Error", {}).get("Code", ""))
    if known is not None:
        return known(action, arn)
    status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 429:
        return _throttled(action, arn)
    if status == 403:
        return _denied(action, arn)
    return _unreachable(action, arn) if status >= 500 else None
