"""Data keys under a branch key: vectors of the official hierarchical keyring, and what never unwraps."""

import hmac
import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from betrace_kms_envelope import Message
from betrace_kms_server.core.errors import DoesNotOpen
from betrace_kms_server.core.keys import KeyMaterial
from betrace_kms_server.data_keys.hierarchy import CIPHERTEXT_BYTES, BranchKey, version_of
from hypothesis import given
from hypothesis import strategies as st

VECTORS: Mapping[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/hierarchical_keyring.json").read_text("utf-8")
)
CONTEXT = {"tenantId": "acme", "field": "email"}
KEY = BranchKey("acme", uuid4(), KeyMaterial(bytes(range(32))), "arn")
DATA_KEY = bytes(32)


@pytest.mark.parametrize("vector", VECTORS["messages"])
def test_message_of_the_official_keyring_opens(vector: Mapping[str, Any]) -> None:
    """Its data key unwraps under the branch key that the official library reports, and opens the message."""
    material = KeyMaterial(b64decode(VECTORS["branch_key"]))
    key = BranchKey(VECTORS["branch_key_id"], UUID(VECTORS["version"]), material, "arn")
    message = Message.parse(b64decode(vector["message"]))
    (encrypted,) = message.encrypted_data_keys
    assert (vector["context"], VECTORS["branch_key_id"]) == (dict(message.context), encrypted.provider_info)
    assert b64decode(vector["plaintext"]) == message.open(key.unwrap(encrypted, message.context))


def test_wrapping_key_is_that_of_the_standard() -> None:
    """SP 800-108 in counter mode with one block is one HMAC of the counter and the fixed data."""
    salt = bytes(range(16))
    fixed = b"aws-kms-hierarchy" + b"\x00" + salt + b"\x00\x00\x01\x00"
    assert hmac.digest(bytes(range(32)), b"\x00\x00\x00\x01" + fixed, "sha256") == KEY._wrapping_key(salt)


@given(data_key=st.binary(min_size=32, max_size=32), context=st.dictionaries(st.text(max_size=9), st.text(max_size=9)))
def test_what_was_wrapped_unwraps(data_key: bytes, context: dict[str, str]) -> None:
    """A data key comes back for any context, and names version and branch key."""
    encrypted = KEY.wrap(data_key, context)
    assert (CIPHERTEXT_BYTES, KEY.version, "acme") == (
        len(encrypted.ciphertext),
        version_of(encrypted),
        encrypted.provider_info,
    )
    assert data_key == KEY.unwrap(encrypted, context)


@given(place=st.integers(min_value=0, max_value=8 * CIPHERTEXT_BYTES - 1))
def test_any_flipped_bit_does_not_unwrap(place: int) -> None:
    """Salt, IV, version, key and tag are all authenticated."""
    encrypted = KEY.wrap(DATA_KEY, CONTEXT)
    altered = bytearray(encrypted.ciphertext)
    altered[place // 8] ^= 1 << place % 8
    with pytest.raises(DoesNotOpen):
        KEY.unwrap(replace(encrypted, ciphertext=bytes(altered)), CONTEXT)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(KEY, branch_key_id="globex"), id="another branch key id"),
        pytest.param(replace(KEY, version=uuid4()), id="another version"),
        pytest.param(replace(KEY, material=KeyMaterial(bytes(32))), id="another key"),
    ],
)
def test_another_branch_key_does_not_unwrap(other: BranchKey) -> None:
    """Id, version and material must all be those that wrapped."""
    with pytest.raises(DoesNotOpen):
        other.unwrap(KEY.wrap(DATA_KEY, CONTEXT), CONTEXT)


def test_another_context_does_not_unwrap() -> None:
    """A data key is bound to the context of its message."""
    with pytest.raises(DoesNotOpen):
        KEY.unwrap(KEY.wrap(DATA_KEY, CONTEXT), {**CONTEXT, "field": "name"})


@pytest.mark.parametrize("size", [0, 1, CIPHERTEXT_BYTES - 1, CIPHERTEXT_BYTES + 1])
def test_ciphertext_of_another_size_has_no_version(size: int) -> None:
    """What is cut or too long is refused before a version is read from it."""
    encrypted = replace(KEY.wrap(DATA_KEY, CONTEXT), ciphertext=bytes(size))
    assert version_of(encrypted) is None
    with pytest.raises(DoesNotOpen):
        KEY.unwrap(encrypted, CONTEXT)


def test_data_key_of_kms_has_no_version() -> None:
    """Only the provider id of the hierarchical keyring makes a ciphertext one of a branch key."""
    assert version_of(replace(KEY.wrap(DATA_KEY, CONTEXT), provider_id="aws-kms")) is None


def test_wraps_do_not_repeat() -> None:
    """Salt and IV are drawn anew for each data key."""
    wraps = [KEY.wrap(DATA_KEY, CONTEXT).ciphertext for _ in range(100)]
    assert (100, 100) == (len({wrap[:16] for wrap in wraps}), len({wrap[16:28] for wrap in wraps}))
