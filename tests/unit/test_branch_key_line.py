"""The line of a branch key's row in an export: recorded, so that every older export can still be imported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.branch_rows import BranchKeyRow
from betrace_kms_server.stores.branch_key_export import BranchKeyLine, is_row, line_of, row_of
from betrace_kms_server.stores.export import key_of

ROW = BranchKeyRow(
    {
        "branch-key-id": "acme",
        "type": "branch:ACTIVE",
        "version": "branch:version:00010203-0405-0607-0809-0a0b0c0d0e0f",
        "kms-arn": "arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-3333-444444444444",
        "create-time": "2026-01-02T03:04:05.678901Z",
        "hierarchy-version": "1",
        "aws-crypto-ec:tenantId": "acme",
    },
    bytes(range(40)),
)
RECORDED = (
    b'{"branchKeyId":"acme","type":"branch:ACTIVE","logicalName":"keys","attributes":{"version":"branch:version:'
    b'00010203-0405-0607-0809-0a0b0c0d0e0f","kms-arn":"arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-'
    b'3333-444444444444","create-time":"2026-01-02T03:04:05.678901Z","hierarchy-version":"1","aws-crypto-ec:tenantId"'
    b':"acme"},"enc":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJw==","checksum":"4cc7c832044729eba80443b03b1e3778794ea784a16ec4919d902eed05043c3f"}\n'
)


def edited(**members: Any) -> bytes:
    """Return the line with other members."""
    return json.dumps({**json.loads(RECORDED), **members}).encode()


def test_line_is_byte_for_byte_what_it_was() -> None:
    """The recorded line is written, and read again as the same row."""
    assert RECORDED == line_of(ROW, "keys")
    assert ROW == row_of(RECORDED, "keys")
    assert is_row(RECORDED)


def test_wrapped_key_is_in_no_text() -> None:
    """Neither in that of the line nor in that of the row."""
    line = BranchKeyLine.model_validate(json.loads(RECORDED))
    assert "enc" not in repr(line)
    assert "AAEC" not in repr(line)


@pytest.mark.parametrize("name", json.loads(RECORDED))
@pytest.mark.parametrize("value", [None, 1.0, [], {"a": 1}, True, -1, ""])
def test_value_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    """No value is converted: the line is refused in one sentence that names the field."""
    with pytest.raises(ValueError, match=name.replace("branchKeyId", "branchKeyId|tenant_id")) as refused:
        row_of(edited(**{name: value}), "keys")
    assert 1 == len(str(refused.value).splitlines())


@pytest.mark.parametrize(
    "members",
    [
        {"branchKeyId": "globex"},
        {"type": "beacon:ACTIVE"},
        {"logicalName": "other"},
        {"enc": "AAEC"},
        {"attributes": {**json.loads(RECORDED)["attributes"], "kms-arn": "arn:aws:kms:us-east-1:1:key/2"}},
        {"attributes": {**json.loads(RECORDED)["attributes"], "more": "x"}},
        {"attributes": {}},
        {"checksum": "00" * 32},
    ],
)
def test_edited_line_is_refused(members: dict[str, Any]) -> None:
    """Whatever was changed, the checksum is not that of the row any more."""
    with pytest.raises(ValueError, match="was damaged or edited"):
        row_of(edited(**members), "keys")


def test_attributes_cannot_say_whose_row_it_is() -> None:
    """The id and the type are members of their own."""
    for name in ("branch-key-id", "type"):
        with pytest.raises(ValueError, match="must not have"):
            row_of(edited(attributes={**json.loads(RECORDED)["attributes"], name: "x"}), "keys")


@pytest.mark.parametrize("changed", [{"hierarchy-version": "2"}, {"version": "branch:version:0"}, {"create-time": ""}])
def test_row_that_cannot_be_one_is_refused(changed: dict[str, str]) -> None:
    """With a good checksum too: a later version may have made it."""
    line = line_of(BranchKeyRow({**ROW.attributes, **changed}, ROW.enc), "keys")
    with pytest.raises(ValueError, match="no row of a branch key that this version knows"):
        row_of(line, "keys")


def test_another_logical_name_is_named() -> None:
    """The row would never open there, and the text says what to set."""
    with pytest.raises(ValueError, match=r"set kms\.branch-keys\.logical-name=keys$"):
        row_of(RECORDED, "other")


def test_line_is_no_signing_key() -> None:
    """And members of one are none of the other."""
    with pytest.raises(ValueError, match="is missing"):
        key_of(RECORDED)
    with pytest.raises(ValueError, match="more is unknown"):
        row_of(edited(more=1), "keys")


def test_line_is_as_documented() -> None:
    """With exactly the fields of docs/key-store.md."""
    document = (Path(__file__).parents[2] / "docs/key-store.md").read_text("utf-8").partition("### Branch keys")[2]
    assert re.findall(r"^\| `(\w+)` \|", document, re.MULTILINE) == list(json.loads(RECORDED))
