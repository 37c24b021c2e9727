"""Takes keys out of the answers of KMS before the SDK's parser makes copies of them that no one can wipe.

The parser decodes the answer into text, the text into JSON's strings, and one of those into bytes: three copies of a
key in objects that cannot change, which stay in freed memory as they were. Here the key goes from the answer's bytes
into one bytearray, and the parser gets the answer without it. What was received stays: those bytes are the transport's.

An answer that this does not understand is left to the parser, whose word on it is the last.
"""

import re
from collections.abc import MutableMapping
from typing import Any

_OK = 200
_FIELD = re.compile(rb'"Plaintext"\s*:\s*"([A-Za-z0-9+/]+={0,2})"')
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_PAD = ord("=")


def take_plaintext(
    response_dict: MutableMapping[str, Any], customized_response_dict: MutableMapping[str, Any], **_: Any
) -> None:
    """Let an answer's `Plaintext` be a bytearray that its reader wipes. A handler of botocore's event before-parse."""
    body = response_dict["body"]
    if response_dict["status_code"] != _OK or not isinstance(body, bytes):
        return
    found = list(_FIELD.finditer(body))
    if len(found) != 1 or (found[0].end(1) - found[0].start(1)) % 4:
        return
    begin, end = found[0].span(1)
    with memoryview(body) as whole:
        customized_response_dict["Plaintext"] = decoded(whole[begin:end])
        response_dict["body"] = b"".join((whole[:begin], whole[end:]))


def decoded(text: memoryview) -> bytearray:
    """Return what base64 text (RFC 4648, section 4, padded) stands for. Not by binascii: it answers in bytes."""
    result = bytearray()
    for at in range(0, len(text), 4):
        bits = 0
        for character in text[at : at + 4]:
            bits = bits << 6 | _VALUES.get(character, 0)
        result += bytes((bits >> 16, bits >> 8 & 0xFF, bits & 0xFF))
    padding = sum(character == _PAD for character in text[-2:])
    del result[len(result) - padding :]
    return result
