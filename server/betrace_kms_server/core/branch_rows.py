"""Rows of a branch key store, in the form that every store and the official SDKs share.

AWS Encryption SDK specification, framework/branch-key-store.md, "Record Format" and "Encryption Context". A branch key
has one row for each version, a copy of the newest one under its own type, and a beacon key. Everything in a row but
`enc` is text that KMS authenticates: it is the encryption context under which `enc` was wrapped, with the logical name
of the store, which no row carries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from betrace_kms_server.core.tenancy import Context

ID, TYPE, VERSION, KMS_ARN, CREATE_TIME = "branch-key-id", "type", "version", "kms-arn", "create-time"
HIERARCHY_VERSION = "hierarchy-version"
CUSTOM_PREFIX = "aws-crypto-ec:"
ACTIVE, BEACON = "branch:ACTIVE", "beacon:ACTIVE"
VERSION_PREFIX = "branch:version:"
SUPPORTED = "1"
"""The hierarchy-version of all rows that we know."""


@dataclass(frozen=True, slots=True)
class BranchKeyRow:
    """One wrapped key of a branch key store."""

    attributes: Mapping[str, str]
    """All of the row but `enc`."""
    enc: bytes = field(repr=False)

    @property
    def branch_key_id(self) -> str:
        """The id of the branch key, which is a tenant id."""
        return self.attributes[ID]

    @property
    def type(self) -> str:
        """Which of the branch key's rows it is."""
        return self.attributes[TYPE]

    @property
    def version(self) -> UUID:
        """The version of the branch key. Raises ValueError or KeyError if the row names none."""
        named = self.attributes[VERSION] if self.type == ACTIVE else self.type
        version = UUID(named.removeprefix(VERSION_PREFIX))
        if named != type_of(version):
            raise ValueError("no version of a branch key")
        return version

    @property
    def kms_arn(self) -> str:
        """The ARN of the master key that wrapped it."""
        return self.attributes[KMS_ARN]

    @property
    def custom(self) -> Mapping[str, str]:
        """The pairs that whoever made the branch key chose, in all its rows alike."""
        return {name: value for name, value in self.attributes.items() if name.startswith(CUSTOM_PREFIX)}

    def is_whole(self) -> bool:
        """Check that the row has what every row of its type has, before KMS is asked about it."""
        try:
            versioned = self.type == BEACON or self.version is not None
        except (KeyError, ValueError):
            return False
        required = (ID, TYPE, KMS_ARN, CREATE_TIME)
        supported = self.attributes.get(HIERARCHY_VERSION) == SUPPORTED
        return versioned and supported and bool(self.enc) and all(map(self.attributes.get, required))


@dataclass(frozen=True, slots=True)
class VersionRows:
    """The two rows of a new version: one that stays, and its copy under the type of the active version."""

    version: BranchKeyRow
    active: BranchKeyRow


def type_of(version: UUID) -> str:
    """Return the type of the row of a version."""
    return f"{VERSION_PREFIX}{version}"


def attributes_of(
    branch_key_id: str, type_: str, *, kms_arn: str, create_time: str, custom: Mapping[str, str]
) -> dict[str, str]:
    """Return the attributes of a new row."""
    return {
        ID: branch_key_id,
        TYPE: type_,
        KMS_ARN: kms_arn,
        CREATE_TIME: create_time,
        HIERARCHY_VERSION: SUPPORTED,
        **custom,
    }


def row_context(attributes: Mapping[str, str], logical_name: str) -> Context:
    """Return the encryption context under which KMS wrapped the key of a row."""
    return {**attributes, "tablename": logical_name}


def timestamp(seconds: float) -> str:
    """Return a time since the Unix epoch in the form of `create-time`, which sorts by time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
