"""What a production check finds out of the daemon's role and of the endpoints of its clients."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from betrace_kms_server.aws.endpoints import inspect_endpoints, is_aws
from betrace_kms_server.core.keys import WrappedKey
from betrace_kms_server.providers.aws.role import PROBES, inspect_role
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.contract.samples import ARN

CONTEXT = {"tenantId": "betrace-kms:validate", "keyType": "encryption"}
ALL = (
    "kms:ListKeys, kms:GetKeyPolicy, kms:CreateGrant, kms:ReEncrypt, kms:GenerateDataKeyWithoutPlaintext"  # as they run
)
METHODS = {
    "list_keys": {"Limit"},
    "get_key_policy": {"KeyId", "PolicyName"},
    "create_grant": {"KeyId", "GranteePrincipal", "Operations", "DryRun"},
    "re_encrypt": {
        *("CiphertextBlob", "SourceKeyId", "SourceEncryptionContext"),
        *("DestinationKeyId", "DestinationEncryptionContext", "DryRun"),
    },
    "generate_data_key_without_plaintext": {"KeyId", "NumberOfBytes", "EncryptionContext", "DryRun"},
}
"""What is called, and with which parameters."""


class Kms:
    """A KMS that answers every call alike, and notes them."""

    def __init__(self, answer: BaseException | None) -> None:
        self.calls: dict[str, Mapping[str, Any]] = {}
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        async def call(**parameters: Any) -> Mapping[str, Any]:
            self.calls[name] = parameters
            if self._answer is not None:
                raise self._answer
            return {}

        return call


def refusal(code: str) -> ClientError:
    """Return the SDK's error for an answer."""
    return ClientError({"Error": {"Code": code, "Message": "User: arn:aws:iam::1:role/secret"}}, "Any")


async def problem(kms: Any, seconds: float = 5.0) -> str:
    """Return what is found of the role."""
    return (await inspect_role(kms, WrappedKey(b"blob", ARN), CONTEXT, seconds)).problem


@pytest.mark.parametrize("code", ["AccessDeniedException", "AccessDenied"])
async def test_a_role_that_is_denied_everything_is_good(code: str) -> None:
    """Each permission was tried, and what could change something said DryRun."""
    kms = Kms(refusal(code))
    assert "" == await problem(kms)
    assert METHODS == {name: set(parameters) for name, parameters in kms.calls.items()}
    tried_dry = {name for name, parameters in kms.calls.items() if parameters.get("DryRun") is True}
    assert {"list_keys", "get_key_policy"} == set(METHODS) - tried_dry
    assert len(PROBES) == len(METHODS)


@pytest.mark.parametrize("answer", [None, refusal("DryRunOperationException")], ids=["answered", "dry run"])
async def test_a_role_that_may_more_is_told_what_to_take_away(answer: BaseException | None) -> None:
    """A dry run that would have been made is as bad as an answer; each permission is named."""
    assert (await problem(Kms(answer))).startswith(f"the daemon's role may use {ALL}: take that away in its IAM policy")


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (refusal("ThrottlingException"), "ThrottlingException"),
        (refusal("ValidationException"), "ValidationException"),
        (EndpointConnectionError(endpoint_url="https://secret"), "EndpointConnectionError"),
        (RuntimeError("secret"), "RuntimeError"),
    ],
)
async def test_what_is_neither_is_not_known(answer: BaseException, name: str) -> None:
    """No other answer passes for a denial, and none of the SDK's words are shown."""
    found = await problem(Kms(answer))
    assert found.startswith(f"not known whether the daemon's role may use kms:ListKeys ({name}), ")
    assert "secret" not in found


async def test_silence_is_not_known() -> None:
    """Each probe has its time."""

    class Silent:
        def __getattr__(self, name: str) -> Any:
            return lambda **parameters: asyncio.Event().wait()

    assert "kms:ListKeys (TimeoutError)" in await problem(Silent(), 0.01)


@pytest.mark.parametrize(
    ("url", "aws"),
    [
        ("https://kms.us-east-1.amazonaws.com", True),
        ("https://kms-fips.us-gov-west-1.amazonaws.com", True),
        ("https://kms.us-east-1.api.aws", True),
        ("https://kms.cn-north-1.amazonaws.com.cn", True),
        ("https://dynamodb.us-iso-east-1.c2s.ic.gov", True),
        ("https://vpce-0abc.kms.us-east-1.vpce.amazonaws.com", True),
        ("https://KMS.US-EAST-1.AMAZONAWS.COM.:443/", True),
        ("http://kms.us-east-1.amazonaws.com", False),
        ("https://amazonaws.com.example", False),
        ("https://notamazonaws.com", False),
        ("https://amazonaws.com", False),
        ("https://user@kms.example?x=.amazonaws.com", False),
        ("https://127.0.0.1:5000", False),
        ("localhost:4566", False),
    ],
)
def test_what_is_aws(url: str, aws: bool) -> None:
    """TLS to a host in a domain that the SDK knows as a partition's, and nothing else."""
    assert aws is is_aws(url)


def test_a_foreign_endpoint_is_named_without_its_password() -> None:
    """The sentence has scheme and host of each that is not AWS."""
    urls = {
        "KMS in us-east-1": "https://kms.us-east-1.amazonaws.com",
        "KMS in eu-west-1": "http://me:secret@kms:4566/x",
    }
    found = inspect_endpoints("kms_endpoint", urls)
    assert found.problem.startswith(
        "calls to KMS in eu-west-1 go to http://kms, which is not AWS: remove aws.kms.endpoint"
    )
    assert "secret" not in found.problem
