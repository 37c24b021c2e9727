"""ARNs of KMS keys: what they say of a key's Region, and of the replicas of a multi-Region key.

The replicas of a multi-Region key share account, key id and key material: what one of them wrapped, any of them unwraps
(AWS KMS Developer Guide, "Multi-Region keys in AWS KMS"). Each has a key policy and a state of its own.

Knows nothing of the SDK, so that the configuration can be checked without it.
"""

from dataclasses import dataclass

_PARTS = 6
_REGION = 3
_MULTI_REGION = "key/mrk-"


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica of the master key: its full ARN, and an endpoint override for emulators."""

    arn: str
    endpoint: str | None = None

    @property
    def region(self) -> str:
        """The Region that the replica is in."""
        return self.arn.split(":")[_REGION]


def region_of(arn: str) -> str | None:
    """Return the Region of a full ARN, or None for an alias or a bare key id."""
    parts = arn.split(":")
    return parts[_REGION] if len(parts) == _PARTS else None


def are_replicas(arn: str, other: str) -> bool:
    """Return whether two ARNs name one multi-Region key: alike but for the Region, with an id that begins with mrk-."""
    parts, others = arn.split(":"), other.split(":")
    if len(parts) != _PARTS or len(others) != _PARTS or not parts[-1].startswith(_MULTI_REGION):
        return False
    del parts[_REGION], others[_REGION]
    return parts == others
