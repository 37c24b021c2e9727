"""Lines of JSON of which some members are sealed: what is read, what is refused, and that all else stays as it was."""

import base64
import json
from typing import Any

import pytest
from betrace_kms_client.json_lines import (
    BadLine,
    Members,
    Record,
    message_of,
    opened_value,
    plaintext_of,
    sealed_value,
)
from hypothesis import given
from hypothesis import strategies as st

MESSAGE = bytes.fromhex("020478") + bytes(100)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    members=st.dictionaries(st.text(), VALUES, min_size=1, max_size=5),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r: ")]),
    data=st.data(),
)
def test_all_but_the_members_stays_as_it_was(
    members: dict[str, Any], ascii_only: bool, separators: tuple[str, str], data: st.DataObject
) -> None:
    """Byte for byte, whatever escapes and spaces there are; what goes back is what was."""
    line = (json.dumps(members, ensure_ascii=ascii_only, separators=separators) + " \r\n").encode("utf-8", "replace")
    record = Record(line)
    names = data.draw(st.lists(st.sampled_from(sorted(json.loads(line))), unique=True))
    values = {name: record.value(name) for name in names}
    texts = {name: value for name, value in values.items() if value is not None}
    assert line == record.with_values(texts)
    replaced = Record(record.with_values(dict.fromkeys(texts, '"x"')))
    assert all('"x"' == replaced.value(name) for name in names)
    for name in set(json.loads(line)) - set(names):
        assert record.value(name) == replaced.value(name)


@pytest.mark.parametrize(
    "value",
    [
        "1e400",
        "-0",
        "123456789012345678901234567890",
        "1.0000000000000000000000001",
        "9" * 5000,
        '"\\u00e9\\ud800"',
        '{"a": [1 ,2], "a": 3}',
        "null",
        "true",
        '"AgR4 is how a message begins"',
    ],
)
def test_value_comes_back_as_it_was_written(value: str) -> None:
    """Numbers that no float can be, escapes, and members that are given twice within it."""
    record = Record(f'{{"id": 7, "v": {value}}}'.encode())
    text = record.value("v")
    assert value == text == opened_value("v", plaintext_of("v", value))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b'{"a": 1',
        b'{"a": 1,}',
        b'{"a" 1}',
        b"{a: 1}",
        b'{"a": 1} x',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 01}',
        b'{"a": "\n"}',
        b'{"a": 1}{"b": 2}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": +1}',
        b"{'a': 1}",
    ],
)
def test_line_that_is_no_object_is_refused(line: bytes) -> None:
    """In one sentence."""
    with pytest.raises(BadLine, match=r"is no JSON object|is not UTF-8|byte order mark"):
        Record(line)


def test_member_that_is_given_twice_is_refused_where_it_matters() -> None:
    """Readers differ in which of the two they take."""
    record = Record(b'{"a": 1, "a": 2, "b": 3, "\\u0062c": 4, "bc": 5}')
    assert "3" == record.value("b")
    for name in ("a", "bc"):
        with pytest.raises(BadLine, match=f"has {name} twice"):
            record.value(name)


@pytest.mark.parametrize(
    ("value", "identity"), [('"a\\u0062"', "ab"), ("17", "17"), ("-9007199254740993", "-9007199254740993")]
)
def test_record_is_bound_to_its_identity(value: str, identity: str) -> None:
    """A text by what it says, a number as it is written."""
    members = Members(["v"], ["id"], {"app": "crm"})
    record = Record(f'{{"id": {value}, "v": 1}}'.encode())
    assert {"app": "crm", "field": "v", "id": identity} == members.context_of(record, "v")


@pytest.mark.parametrize("value", ["1.0", "1e3", "null", "[1]", "{}", "true"])
def test_value_that_may_be_written_otherwise_is_no_identity(value: str) -> None:
    """1.0 and 1 are one number, and two texts."""
    with pytest.raises(BadLine, match="must be a text or a whole number"):
        Record(f'{{"id": {value}}}'.encode()).identity("id")
    with pytest.raises(BadLine, match="has no other"):
        Record(b"{}").identity("other")


def test_sealed_twice_is_noticed() -> None:
    """What is a message already is not sealed again, with either suite, and nothing else is taken for one."""
    for start in ("020478", "020578"):
        with pytest.raises(BadLine, match="is sealed already"):
            plaintext_of("v", sealed_value(bytes.fromhex(start) + bytes(100)))
    assert plaintext_of("v", '"AgR4!"')
    assert MESSAGE == message_of("v", sealed_value(MESSAGE))


@pytest.mark.parametrize("value", ['"alice"', "1", "null", '""', '{"a": 1}', '"AgR4=="', '"AgR4\\u0021"'])
def test_plain_value_is_not_opened(value: str) -> None:
    """It never goes to the daemon."""
    with pytest.raises(BadLine, match="is not sealed"):
        message_of("v", value)


@pytest.mark.parametrize("plaintext", [b"", b"alice", b'1, "admin": true', b"1\n", b'"a"\n{}', b" 1", b"\xff", b"NaN"])
def test_plaintext_that_is_no_value_is_not_written(plaintext: bytes) -> None:
    """It would make other members, or lines, of itself."""
    with pytest.raises(BadLine, match="holds no JSON value"):
        opened_value("v", plaintext)


def test_sealed_value_is_base64_of_the_message() -> None:
    """So anything that opens messages opens it."""
    assert MESSAGE == base64.b64decode(json.loads(sealed_value(MESSAGE)))
