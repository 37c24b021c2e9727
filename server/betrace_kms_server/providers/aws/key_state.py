"""What DescribeKey's answer means: may the daemon use this key?

A member that an emulator leaves out counts as the API's default (AWS KMS API reference, CreateKey), and a state that
somebody chose is told from one that passes ("Key states of AWS KMS keys" in the AWS KMS developer guide).
"""

from collections.abc import Mapping
from typing import Any

from betrace_kms_server.aws.arns import are_replicas, region_of
from betrace_kms_server.core.errors import BadAnswer, MasterKeyUnusable

_USABLE = frozenset({"Enabled", "Updating"})
"""KMS encrypts and decrypts. A multi-Region key is Updating while its primary Region changes."""
_DECIDED = frozenset({"Disabled", "PendingDeletion", "PendingReplicaDeletion", "PendingImport"})
"""Somebody chose this. Creating and Unavailable (a custom key store that is away) pass, and so may what is new."""
_NEXT_STEP: Mapping[str, str] = {
    "Creating": "wait until KMS has made it",
    "Disabled": "enable it",
    "PendingDeletion": "cancel its deletion, then enable it",
    "PendingImport": "import its key material",
    "PendingReplicaDeletion": "cancel its deletion, then enable it",
    "Unavailable": "connect its custom key store again",
}


def usable_key(answer: Mapping[str, Any], asked: str) -> str:
    """Return the ARN of the key that was asked for, if it can be used. Raises MasterKeyUnusable and BadAnswer."""
    key = answer.get("KeyMetadata")
    arn = key.get("Arn") if isinstance(key, Mapping) else None
    if not isinstance(key, Mapping) or not isinstance(arn, str) or not same_key(asked, arn):
        raise BadAnswer(
            "KMS answered DescribeKey without the key that was asked for: check what answers there, and"
            " aws.kms.endpoint if it is set",
            metadata={"action": "DescribeKey"},
        )
    state = key.get("KeyState") or ("Disabled" if key.get("Enabled") is False else "Enabled")
    if state not in _USABLE:
        next_step = _NEXT_STEP.get(state, "see its state in the AWS KMS console")
        raise MasterKeyUnusable(f"the master key {arn} is {state}: {next_step}", state=state, decided=state in _DECIDED)
    usage = key.get("KeyUsage") or "ENCRYPT_DECRYPT"
    spec = key.get("KeySpec") or key.get("CustomerMasterKeySpec") or "SYMMETRIC_DEFAULT"
    if (usage, spec) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
        raise MasterKeyUnusable(
            f"the master key {arn} is {spec} for {usage}: a symmetric key for encrypt and decrypt is needed",
            decided=True,
        )
    return arn


def same_key(asked: str, answered: str) -> bool:
    """Tell whether an answer's key is the one that was asked. An id or alias, for emulators, may be any key's."""
    return answered == asked or are_replicas(answered, asked) or region_of(asked) is None
