"""Where the fields of a record stand, what is sealed of them, and what is refused."""

import json
from base64 import b64encode

import pytest
from betrace_kms_client.records import InvalidRecord, Record, Selection
from hypothesis import given
from hypothesis import strategies as st

FIELDS = ["email", "user.ssn"]
CONTEXT = {"table": "users", "record": "@id", "at": "@@home"}


def record(line: bytes, fields: list[str] = FIELDS, context: dict[str, str] = CONTEXT) -> Record:
    """Return the record in a line."""
    found = Selection(fields, context).record(line)
    assert found is not None
    return found


def test_only_the_values_change() -> None:
    """Numbers, order, white space, names that come twice, escapes, a byte order mark and the end of the line stay."""
    line = b'\xef\xbb\xbf {"big":1e400, "id" : 17,"n":123456789012345678901234567890.10,"a":1,"a":2,'
    line += b'"\\u00e9":"\\ud800",\t"user":{"ssn": {"x": [1.0, null]} ,"z":[]},"email":"a@b\\u002f" }\r\n'
    found = record(line)
    bound = {"table": "users", "record": "17", "at": "@home"}
    assert found.to_seal() == [
        (b'{"x": [1.0, null]}', {**bound, "field": "user.ssn"}),
        (b'"a@b\\u002f"', {**bound, "field": "email"}),
    ]
    sealed = found.sealed([b"one", b"two"])
    assert sealed == line.replace(b'{"x": [1.0, null]}', b'"sealed:v1:b25l"').replace(
        b'"a@b\\u002f"', b'"sealed:v1:dHdv"'
    )
    again = record(sealed)
    assert again.to_open() == [
        (b"one", {**bound, "field": "user.ssn"}),
        (b"two", {**bound, "field": "email"}),
    ]
    assert again.opened([payload for payload, _ in found.to_seal()]) == line


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["email", "a", "\u00e9", "x y"]) | st.text(), JSON, max_size=6),
    st.booleans(),
    st.sampled_from([(",", ":"), (" ,\t", "  : ")]),
)
def test_every_record_comes_back(document: dict[str, object], ascii_only: bool, separators: tuple[str, str]) -> None:
    """Byte for byte, and what is between is the same record with other values."""
    line = json.dumps(document, ensure_ascii=ascii_only, separators=separators).encode()
    found = record(line, ["email"], {})
    payloads = [payload for payload, _ in found.to_seal()]
    sealed = found.sealed([b"message"] * len(payloads))
    expected = {**document}
    if document.get("email") is not None:
        expected["email"] = "sealed:v1:" + b64encode(b"message").decode()
    assert (json.loads(sealed), record(sealed, ["email"], {}).opened(payloads)) == (expected, line)


@pytest.mark.parametrize("line", [b'{"id":1}', b'{"id":1,"email":null,"user":null}', b'{"id":"a","user":{"ssn":null}}'])
def test_what_is_missing_or_null_stays(line: bytes) -> None:
    """There is nothing to seal."""
    found = record(line)
    assert (found.to_seal(), found.to_open(), found.sealed([])) == ([], [], line)


@pytest.mark.parametrize("line", [b"", b"\n", b" \t\r\n", b"\xef\xbb\xbf"])
def test_a_blank_line_is_no_record(line: bytes) -> None:
    """It is written as it is."""
    assert Selection(FIELDS, CONTEXT).record(line) is None


def test_a_name_with_dots_is_the_field() -> None:
    """It would be plaintext where ciphertext was promised."""
    assert record(b'{"id":1,"user.ssn":5}').to_seal()[0][1]["field"] == "user.ssn"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id":1,"email":"a"', "not JSON: Expecting ',' delimiter at character 20"),
        (b'{"id":1,"email":"a\n', "not JSON: Invalid control character"),
        (b'{"id":1,"email":"a', "not JSON: Unterminated string"),
        (b'{"id":1,}', "not JSON: Expecting property name"),
        (b'{"id" 1}', "not JSON: Expecting ':'"),
        (b'{"id":01}', "not JSON: Expecting ','"),
        (b'{"id":1,"x":NaN}', "not JSON: NaN is no JSON number"),
        (b'{"id":1}{"id":2}', "not JSON: Extra data at character 9"),
        (b'["email"]', "not a JSON object"),
        (b'{"id":1,"email":"\xff"}', "not UTF-8: byte 18"),
        (b'{"id":1,"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"id":1,"email":"a","\\u0065mail":"b"}', "email is there twice"),
        (b'{"id":1,"user":{"ssn":1},"user":{"ssn":2}}', "user.ssn is there twice"),
        (b'{"id":1,"user.ssn":1,"user":{"ssn":2}}', "user.ssn is there twice"),
        (b'{"id":1,"id":2}', "id is there twice"),
        (b'{"id":1,"user":[{"ssn":1}]}', "user is not an object"),
        (b'{"id":1,"user":"ssn"}', "user is not an object"),
        (b'{"email":"a"}', "id is missing"),
        (b'{"id":null}', "id is neither a string nor an integer"),
        (b'{"id":1.0}', "id is neither"),
        (b'{"id":{}}', "id is neither"),
        (b'{"id":"\\ud800"}', "id holds half a surrogate"),
    ],
)
def test_a_record_that_hides_something_is_refused(line: bytes, words: str) -> None:
    """And the message holds nothing of it."""
    with pytest.raises(InvalidRecord, match="^" + words.replace(".", r"\.")):
        record(line)


@pytest.mark.parametrize("value", ['"sealed:v1:AgR4"', '"sealed:v1:"', '"\\u0073ealed:v1:AgR4"'])
def test_nothing_is_sealed_twice(value: str) -> None:
    """However the prefix is spelt."""
    with pytest.raises(InvalidRecord, match=r"^email is sealed already"):
        record(f'{{"id":1,"email":{value}}}'.encode()).to_seal()


@pytest.mark.parametrize(
    ("value", "words"),
    [('"a@b"', "email is not sealed"), ("17", "email is not sealed"), ('"sealed:v1:AgR"', "email is damaged")],
)
def test_only_what_is_sealed_opens(value: str, words: str) -> None:
    """Other values are not passed through as if they had been verified."""
    with pytest.raises(InvalidRecord, match=f"^{words}"):
        record(f'{{"id":1,"email":{value}}}'.encode()).to_open()


@pytest.mark.parametrize("plaintext", [b"", b"a", b"1 2", b'"a"\n', b"[1,\n2]", b"\xff", b"NaN", b'1,"admin":true'])
def test_only_one_value_takes_the_place_of_a_message(plaintext: bytes) -> None:
    """Whoever may seal under the same context cannot add members or lines."""
    with pytest.raises(InvalidRecord, match=r"^email holds no JSON value"):
        record(b'{"id":1,"email":"sealed:v1:AgR4"}').opened([plaintext])


@pytest.mark.parametrize(
    ("fields", "context", "words"),
    [
        ([""], {}, "a field is the name"),
        (["a", ""], {}, "a field is the name"),
        (["a..b"], {}, "a field is the name"),
        (["a"], {"record": "@"}, "a field is the name"),
        (["a", "a"], {}, "a field is given twice"),
        (["a", "a.b"], {}, "a is given, and so is a member"),
        (["a"], {"record": "@a"}, "a is sealed"),
        (["a"], {"record": "@a.b"}, "a is given, and so is a member"),
        (["a"], {"field": "x"}, "the pair 'field'"),
    ],
)
def test_a_selection_that_cannot_work_is_refused(fields: list[str], context: dict[str, str], words: str) -> None:
    """Before a line is read."""
    with pytest.raises(ValueError, match=f"^{words}"):
        Selection(fields, context)
