"""Branch keys in an export: one line of JSON for each row of the branch key store. What is in `enc` is wrapped.

A row is authenticated by KMS with the logical name of its store, so a line has that too. The checksum lets an import
refuse a line that was damaged, without KMS. Lines are in the order in which an import may put them back, and be broken
off: the versions and the beacon key of a branch key come before its active row.
"""

from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Annotated, Self

import orjson
from pydantic import BeforeValidator, Field

from betrace_kms_server.core.branch_rows import ACTIVE, BEACON, ID, TYPE, BranchKeyRow
from betrace_kms_server.core.tenancy import check_tenant_id
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.export_fields import (
    BASE64,
    WRAPPED_BYTES,
    Checksum,
    Line,
    Text,
    checked,
    fields_of,
    in_base64,
    read,
)


def _attributes(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError("must be an object of texts")
    if ID in value or TYPE in value:
        raise ValueError(f"must not have {ID} or {TYPE}")
    return value


class BranchKeyLine(Line):
    """One row in the form of a line, its fields in the order of docs/key-store.md."""

    branch_key_id: Annotated[str, checked(check_tenant_id)]
    type: Text
    logical_name: Text
    attributes: Annotated[Mapping[str, str], BeforeValidator(_attributes)]
    enc: Annotated[bytes, in_base64(1, WRAPPED_BYTES), BASE64] = Field(repr=False)
    checksum: Checksum

    @classmethod
    def of(cls, row: BranchKeyRow, logical_name: str) -> Self:
        """Return the line of a row."""
        others = {name: value for name, value in row.attributes.items() if name not in (ID, TYPE)}
        return cls.model_construct(
            branch_key_id=row.branch_key_id,
            type=row.type,
            logical_name=logical_name,
            attributes=others,
            enc=row.enc,
            checksum=_checksum(row, logical_name),
        )

    def row(self) -> BranchKeyRow:
        """Return the row. Raises ValueError if it does not have its checksum, or cannot be one."""
        row = BranchKeyRow({ID: self.branch_key_id, TYPE: self.type, **self.attributes}, self.enc)
        if _checksum(row, self.logical_name) != self.checksum:
            raise ValueError("does not have its checksum: it was damaged or edited")
        if not row.is_whole():
            raise ValueError("is no row of a branch key that this version knows")
        return row


def line_of(row: BranchKeyRow, logical_name: str) -> bytes:
    """Return a row as a line of JSON, its newline included."""
    return BranchKeyLine.of(row, logical_name).json_line()


def is_row(line: bytes) -> bool:
    """Return whether a line is of a branch key. Raises ValueError for what is no line at all."""
    return "branchKeyId" in fields_of(line)


def row_of(line: bytes, logical_name: str) -> BranchKeyRow:
    """Return the row that a line holds. Raises ValueError that says what is wrong with the line."""
    found = read(BranchKeyLine, line)
    row = found.row()
    if found.logical_name != logical_name:
        raise ValueError(
            f"branch key {row.branch_key_id} is bound to the logical name {found.logical_name}, and this store has"
            f" {logical_name}: set kms.branch-keys.logical-name={found.logical_name}"
        )
    return row


async def in_order(store: BranchKeyStore) -> AsyncIterator[BranchKeyRow]:
    """Yield every row, active ones last, and each of these with all that it needs, also if it was made meanwhile."""
    seen: set[tuple[str, str]] = set()
    async for row in store.rows():
        if row.type != ACTIVE:
            seen.add((row.branch_key_id, row.type))
            yield row
    async for row in store.rows():
        if row.type == ACTIVE:
            for type_ in (row.attributes["version"], BEACON):
                if (row.branch_key_id, type_) not in seen:
                    other = await store.row(row.branch_key_id, type_)
                    if other is not None:
                        yield other
            yield row


def _checksum(row: BranchKeyRow, logical_name: str) -> bytes:
    content = [row.attributes, row.enc.hex(), logical_name]
    return sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
