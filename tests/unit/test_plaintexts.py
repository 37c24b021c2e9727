"""Keys out of the answers of KMS, without the copies of the SDK's parser."""

import base64
import os
from typing import Any

import pytest
from betrace_kms_server.aws.plaintexts import decoded, take_plaintext


def taken(body: object, status: int = 200) -> tuple[dict[str, Any], object]:
    """Return what was taken out of an answer, and what is left for the parser."""
    answer, found = {"status_code": status, "body": body}, dict[str, Any]()
    take_plaintext(response_dict=answer, customized_response_dict=found, operation_model=None)
    return found, answer["body"]


@pytest.mark.parametrize("size", [*range(1, 40), 1024, 4096])
def test_every_length_is_decoded(size: int) -> None:
    """As the standard library does it, into something that can be wiped."""
    key = os.urandom(size)
    result = decoded(memoryview(base64.b64encode(key)))
    assert (bytes(result), type(result)) == (key, bytearray)


@pytest.mark.parametrize("space", ["", " "])
def test_a_key_is_taken_out_of_an_answer(space: str) -> None:
    """What is left is the same answer with an empty key."""
    key = os.urandom(32)
    text = base64.b64encode(key).decode()
    before = f'{{"CiphertextBlob":"AQID","Plaintext":{space}"'
    found, left = taken(f'{before}{text}","KeyId":"arn"}}'.encode())
    assert (found, left) == ({"Plaintext": bytearray(key)}, f'{before}","KeyId":"arn"}}'.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"KeyId":"arn"}',
        b'{"Plaintext":""}',
        b'{"Plaintext":"AAAAA"}',
        b'{"Plaintext":"A\\/AA"}',
        b'{"Plaintext":7}',
        b'{"KeyId":"\\"Plaintext\\":\\"AAAA\\""}',
        b'{"Plaintext":"AAAA","Plaintext":"BBBB"}',
        None,
    ],
)
def test_an_answer_that_is_not_understood_is_left_to_the_parser(body: object) -> None:
    """Nothing is taken, and not a byte changed."""
    assert taken(body) == ({}, body)


def test_an_error_is_left_to_the_parser() -> None:
    """Only a good answer holds a key."""
    body = b'{"Plaintext":"AAAA"}'
    assert taken(body, 400) == ({}, body)
