"""What the daemon's role may do beyond its four actions, found out by calls that change nothing.

Some of them read. The others have `DryRun`: KMS checks permissions and parameters, does nothing, and refuses in any
case, with DryRunOperationException if it would have done it (AWS KMS developer guide, "Testing your permissions"). A
permission that shows only when it is used is not tried: kms:ScheduleKeyDeletion, kms:DisableKey, kms:PutKeyPolicy. The
policies that allow those by mistake, kms:* and what the console gives to administrators and users of a key, allow one
of these as well.

Each denial is a line in CloudTrail, so all this is for a production check alone, and only at an endpoint of AWS:
emulators do what they are asked to try.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from betrace_kms_server.aws.sdk_errors import DENIED_CODES, code_of
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import WrappedKey
from betrace_kms_server.core.tenancy import Context

Probe = Callable[[Any, WrappedKey, Context], Awaitable[object]]
"""One call of a KMS client, given a key that the master key wrapped, and its context."""

_DRY_RUN = "DryRunOperationException"
_DENIED, _ALLOWED = "denied", "allowed"

PROBES: Mapping[str, Probe] = {
    "kms:ListKeys": lambda kms, key, context: kms.list_keys(Limit=1),
    "kms:GetKeyPolicy": lambda kms, key, context: kms.get_key_policy(KeyId=key.master_key_arn, PolicyName="default"),
    "kms:CreateGrant": lambda kms, key, context: kms.create_grant(
        KeyId=key.master_key_arn,
        GranteePrincipal=_account(key.master_key_arn),
        Operations=["DescribeKey"],
        DryRun=True,
    ),
    "kms:ReEncrypt": lambda kms, key, context: kms.re_encrypt(
        CiphertextBlob=key.blob,
        SourceKeyId=key.master_key_arn,
        SourceEncryptionContext=dict(context),
        DestinationKeyId=key.master_key_arn,
        DestinationEncryptionContext=dict(context),
        DryRun=True,
    ),
    "kms:GenerateDataKeyWithoutPlaintext": lambda kms, key, context: kms.generate_data_key_without_plaintext(
        KeyId=key.master_key_arn, NumberOfBytes=32, EncryptionContext=dict(context), DryRun=True
    ),
}
"""Calls that the daemon never makes, by the permission that they need."""


async def inspect_role(kms: Any, key: WrappedKey, context: Context, seconds: float) -> Finding:
    """Return whether KMS denies each of the probes, which take at most `seconds` each."""
    outcomes = await asyncio.gather(*(_try(probe(kms, key, context), seconds) for probe in PROBES.values()))
    found = dict(zip(PROBES, outcomes, strict=True))
    allowed = [permission for permission, outcome in found.items() if outcome == _ALLOWED]
    unknown = [f"{name} ({outcome})" for name, outcome in found.items() if outcome not in (_ALLOWED, _DENIED)]
    problems = []
    if allowed:
        problems.append(
            f"the daemon's role may use {', '.join(allowed)}: take that away in its IAM policy and in the key policy;"
            " kms:DescribeKey, kms:GenerateDataKey, kms:Encrypt and kms:Decrypt on the master key are all that it needs"
        )
    if unknown:
        problems.append(f"not known whether the daemon's role may use {', '.join(unknown)}: validate again")
    return Finding("kms_role", "; ".join(problems))


async def _try(call: Awaitable[object], seconds: float) -> str:
    """Return `denied`, `allowed`, or the name of what was answered instead."""
    try:
        async with asyncio.timeout(seconds):
            await call
    except Exception as cause:  # noqa: BLE001  # the SDK's exceptions have no common root
        code = code_of(cause)
        if code in DENIED_CODES:
            return _DENIED
        return _ALLOWED if code == _DRY_RUN else code or type(cause).__name__
    return _ALLOWED


def _account(arn: str) -> str:
    """Return the principal of the account that a key is in."""
    partition, account = arn.split(":")[1], arn.split(":")[4]
    return f"arn:{partition}:iam::{account}:root"
