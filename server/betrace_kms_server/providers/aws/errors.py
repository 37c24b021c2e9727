"""What the AWS SDK raises, as our errors: one table for KMS's codes, one list each for the network and credentials.

Nothing else comes out: an exception that no table knows is a failure of the SDK at a call to KMS, and no defect of the
request that happened to need it.
"""

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


def _missing(_action: str, arn: str) -> KmsError:
    return MasterKeyUnusable(
        f"the master key {arn} does not exist: check aws.kms.master-key-id, its account and its region; a key that was"
        " deleted never comes back",
        state="NotFound",
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
        " machine's clock",
        metadata={"kind": "rejected"},
    )


def _does_not_open(_action: str, _arn: str) -> KmsError:
    return DoesNotOpen()


def _invalid(action: str, arn: str) -> KmsError:
    """KMS found the request itself wrong. Of Decrypt's, the blob is a caller's; of the others, only the key's id."""
    return DoesNotOpen() if action == "Decrypt" else _unusable(action, arn)


CODES: Mapping[str, Callable[[str, str], KmsError]] = {
    # AWS KMS API reference, "Errors" of each of the four actions
    "NotFoundException": _missing,
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


_CODE = re.compile(r"[A-Za-z.]{1,64}")
_PRINCIPAL = re.compile(r"User: (arn:[!-~]{1,2048}) is not authorized")


def translated(cause: Exception, action: str, arn: str) -> KmsError:
    """Return our error for whatever a call through the SDK raised."""
    if isinstance(cause, KmsError):
        return cause
    if (trouble := aws_sdk.trouble_of(cause, f"KMS{_where(arn)}")) is not None:
        return KmsUnreachable(trouble.message, metadata={"kind": trouble.kind})
    if isinstance(cause, ClientError):
        error = _of_answer(cause, action, arn)
        if isinstance(error, AccessDenied):
            said = _PRINCIPAL.search(str(getattr(cause, "response", {}).get("Error", {}).get("Message", "")))
            error.principal = said[1] if said else None
        return error
    if isinstance(cause, aws_sdk.CREDENTIALS):
        return _credentials(action, arn)
    if isinstance(cause, aws_sdk.NETWORK):
        return _unreachable(action, arn)
    return KmsUnreachable(
        f"the AWS SDK fails at kms:{action}{_where(arn)} with {type(cause).__name__}: check aws.kms.endpoint,"
        " AWS_ENDPOINT_URL and the daemon's other AWS_* variables; the daemon's log has the traceback",
        metadata={"kind": "sdk"},
    )


def of_opening(cause: Exception, action: str, arn: str) -> KmsError:
    """Return our error for what was raised when a client was made: no request was sent yet."""
    error = translated(cause, action, arn)
    if isinstance(cause, ValueError) and error.metadata.get("kind") == "sdk":
        return KmsUnreachable(
            f"no client for KMS{_where(arn)} can be made: check aws.kms.endpoint, AWS_ENDPOINT_URL and"
            " AWS_ENDPOINT_URL_KMS, which take http://HOST:PORT or https://HOST, and aws.kms.region",
            metadata={"kind": "endpoint"},
        )
    return error


def says_nothing_of_kms(error: KmsError) -> bool:
    """Return whether an error is about this machine or the daemon's credentials, and no reason to leave KMS alone."""
    return isinstance(error, CredentialsUnavailable) or error.metadata.get("kind") in aws_sdk.LOCAL_KINDS


def _of_answer(cause: ClientError, action: str, arn: str) -> KmsError:
    if getattr(cause, "operation_name", action) != action:  # the SDK asked STS for credentials first, and STS refused
        return _credentials(action, arn)
    code = aws_sdk.code_of(cause)
    known = CODES.get(code)
    if known is not None:
        return known(action, arn)
    status = aws_sdk.status_of(cause)
    if status == 429:
        return _throttled(action, arn)
    if status == 403:
        return _denied(action, arn)
    if status >= 500:
        return _unreachable(action, arn)
    named = code if _CODE.fullmatch(code) else "an error without a name"
    return KmsUnreachable(
        f"KMS{_where(arn)} refuses kms:{action} with {named}: check aws.kms.endpoint, and report it if that is right",
        metadata={"kind": "unknown_code"},
    )
