"""Rows of a branch key store as columns of a relational table: what is searched for has a column, the rest is JSON."""

import orjson

from betrace_kms_server.core.branch_rows import CREATE_TIME, ID, KMS_ARN, TYPE, BranchKeyRow
from betrace_kms_server.stores.branch_keys import damaged_row, row_of

_OF_THEIR_OWN = (ID, TYPE, CREATE_TIME, KMS_ARN)


def columns_of(row: BranchKeyRow) -> tuple[object, ...]:
    """Return branch_key_id, type, create_time, kms_arn, attributes and enc of a row."""
    others = {name: value for name, value in row.attributes.items() if name not in _OF_THEIR_OWN}
    return row.branch_key_id, row.type, row.attributes[CREATE_TIME], row.kms_arn, orjson.dumps(others).decode(), row.enc


def row_from(
    branch_key_id: str, type_: str, create_time: str, kms_arn: str, attributes: str, enc: bytes
) -> BranchKeyRow:
    """Return the row that columns hold. Raises KeyDamaged if they cannot be one."""
    try:
        others = orjson.loads(attributes)
    except orjson.JSONDecodeError as cause:
        raise damaged_row(branch_key_id, type_) from cause
    if not isinstance(others, dict) or not all(isinstance(value, str) for value in others.values()):
        raise damaged_row(branch_key_id, type_)
    return row_of({**others, ID: branch_key_id, TYPE: type_, CREATE_TIME: create_time, KMS_ARN: kms_arn}, enc)
