"""What an operator does next about an error of AWS KMS: commands of the AWS CLI, and what to look at."""

from collections.abc import Callable, Mapping

from betrace_kms_server.core.errors import (
    AccessDenied,
    BadAnswer,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)


def region_of(master_key_arn: str) -> str:
    """Return the Region of a master key; of one that is known by an alias only, the setting that names it."""
    parts = master_key_arn.split(":")
    return parts[3] if len(parts) == 6 else "aws.kms.region"


def remedy(error: KmsError, master_key_arn: str, endpoint: str | None) -> str | None:
    """Return an operator's next step, if it is one about KMS. `endpoint` is aws.kms.endpoint if calls go there."""
    known = REMEDIES.get(type(error))
    return known(error, master_key_arn, endpoint) if known else None


def latency_advice(master_key_arn: str) -> str:
    """Return what makes calls to KMS faster."""
    return (
        f"KMS answers slowly: run the daemon in the Region of the key ({region_of(master_key_arn)}), and reach KMS"
        f" there by a VPC endpoint ({endpoint_service(master_key_arn)})"
    )


def _allow(error: KmsError, arn: str, _endpoint: str | None) -> str:
    principal = (error.principal if isinstance(error, AccessDenied) else None) or "the daemon's role"
    action, denied_on = error.metadata.get("action", "kms:*"), error.metadata.get("master_key", arn)
    return f"allow {action} on {denied_on} to {principal} in the key policy and its IAM policy"


def _restore_master_key(error: KmsError, arn: str, _endpoint: str | None) -> str:
    enable = f"aws kms enable-key --key-id {arn}"
    match error.state if isinstance(error, MasterKeyUnusable) else None:
        case "Disabled":
            return f"run {enable}"
        case "PendingDeletion" | "PendingReplicaDeletion":
            return f"run aws kms cancel-key-deletion --key-id {arn}, and then {enable}"
        case "PendingImport":
            return f"import the key material of {arn} again: aws kms import-key-material"
        case "Unavailable":
            return (
                "run aws kms describe-custom-key-stores, and aws kms connect-custom-key-store for the one that holds"
                f" {arn}"
            )
    return (
        f"run aws kms describe-key --key-id {arn} --region {region_of(arn)}: if it is not found, aws.kms.master-key-id"
        " names a key of another account or Region; KeyState must be Enabled and KeySpec SYMMETRIC_DEFAULT"
    )


def _open_the_way(error: KmsError, arn: str, endpoint: str | None) -> str:
    if "kind" in error.metadata:  # the message knows more than that there was no answer
        return error.message.partition(": ")[2]
    if endpoint:
        return f"start what should answer at {endpoint}, or remove aws.kms.endpoint"
    region = region_of(arn)
    return (
        f"open the way to KMS in {region}: DNS, the route, and TCP 443 in the security groups of this machine and of"
        f" the VPC endpoint {endpoint_service(arn)}, if there is one"
    )


def endpoint_service(master_key_arn: str) -> str:
    """Return the name of the VPC endpoint service of KMS for a master key.

    Partitions name it differently; aws ec2 describe-vpc-endpoint-services lists the names of a Region.
    """
    partition, region = master_key_arn.split(":")[1:2], region_of(master_key_arn)
    if partition == ["aws-cn"]:
        return f"cn.com.amazonaws.{region}.kms"
    known = partition in (["aws"], ["aws-us-gov"])
    return f"com.amazonaws.{region}.kms" if known else f"of KMS in {region}"


def _find_credentials(_error: KmsError, _arn: str, _endpoint: str | None) -> str:
    return (
        "run aws sts get-caller-identity in the daemon's place; on EKS, check eks.amazonaws.com/role-arn on the pod's"
        " service account and the role's trust policy, and make the pod anew"
    )


def _slow_down(_error: KmsError, arn: str, _endpoint: str | None) -> str:
    return (
        "validate again in a minute; if it stays, look in Service Quotas at the request rate of AWS KMS in"
        f" {region_of(arn)}, and ask for more"
    )


def _distrust(_error: KmsError, _arn: str, endpoint: str | None) -> str:
    return f"{endpoint or 'KMS'} does not open what it wrapped a moment ago: check what answers there"


def _check_service(_error: KmsError, arn: str, endpoint: str | None) -> str:
    answers = f"at {endpoint}" if endpoint else f"for KMS in {region_of(arn)}"
    return f"check what answers {answers} and the proxies on the route; do not keep keys behind it until it passes"


REMEDIES: Mapping[type[KmsError], Callable[[KmsError, str, str | None], str]] = {
    AccessDenied: _allow,
    MasterKeyUnusable: _restore_master_key,
    KmsUnreachable: _open_the_way,
    CredentialsUnavailable: _find_credentials,
    Throttled: _slow_down,
    DoesNotOpen: _distrust,
    BadAnswer: _check_service,
}
"""For every error of a provider that AWS has a part in."""
