"""The line of an export: its bytes are recorded, so that every older export can still be imported."""

import json

import pytest
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.export import ExportLine, key_of, line_of
from pydantic import ValidationError

KEY = StoredKey(
    "acme",
    "00112233445566778899aabbccddeeff",
    "aws",
    WrappedKey(bytes(range(40)), "arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-3333-444444444444"),
    bytes(range(32)),
    "revoked",
    1_700_000_000_000,
    1_700_000_000_001,
    1_700_000_000_002,
)
RECORDED = (
    b'{"tenantId":"acme","keyId":"00112233445566778899aabbccddeeff","provider":"aws","masterKeyA'
    b'rn":"arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-3333-444444444444","wrapped'
    b'Seed":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJw==","publicKey":"AAECAwQFBgcI'
    b'CQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","status":"revoked","createTime":1700000000000,"rotateTim'
    b'e":1700000000001,"revokeTime":1700000000002,"checksum":"fdb4b00b0dae6f36ad886fbb611f19d013'
    b'ba0b82f1102fc8392aed336ea5d72c"}\n'
)
"""The line of this key as an earlier version wrote it."""


def test_line_is_byte_for_byte_what_it_was() -> None:
    """The recorded line is written, and read again as the same key."""
    assert (RECORDED, KEY) == (line_of(KEY), key_of(RECORDED))


def test_model_is_strict_and_frozen() -> None:
    """A line that was read is not changed, and its seed is in no text about it."""
    line = ExportLine.model_validate(json.loads(RECORDED))
    with pytest.raises(ValidationError, match="frozen"):
        line.status = "active"
    assert "wrapped" not in repr(line)


@pytest.mark.parametrize("name", json.loads(RECORDED))
@pytest.mark.parametrize("value", [None, 1.0, [], {}, True, -1, ""])
def test_value_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    """No value is converted: the line is refused in one sentence that names the field."""
    if value is None and name in ("rotateTime", "revokeTime"):
        return
    with pytest.raises(ValueError, match=name.replace("Id", "(Id|_id)")) as refused:
        key_of(json.dumps({**json.loads(RECORDED), name: value}).encode())
    assert len(str(refused.value).splitlines()) == 1
