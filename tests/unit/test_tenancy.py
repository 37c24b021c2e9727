"""Tenant ids, key ids and encryption contexts: what may come from a caller, and what keeps tenants apart."""

import string

import pytest
from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.tenancy import (
    DataKeyType,
    belongs_to,
    check_caller_context,
    check_key_id,
    check_tenant_id,
    encryption_context,
    signing_context,
)
from hypothesis import given
from hypothesis import strategies as st

TENANT_CHARACTERS = string.ascii_letters + string.digits + "._:-"
KEY_ID = "00112233445566778899aabbccddeeff"
caller_pairs = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name not in ("tenantId", "keyType")), st.text(max_size=8)
)


@pytest.mark.parametrize(
    "tenant_id", ["a", "0", "-", ".", "..", "acme", "ACME:eu.west_1-2", TENANT_CHARACTERS, "x" * 128]
)
def test_tenant_ids(tenant_id: str) -> None:
    """A tenant id is 1 to 128 characters of [A-Za-z0-9._:-], and comes back as it is."""
    assert tenant_id == check_tenant_id(tenant_id)


@pytest.mark.parametrize(
    "tenant_id",
    [
        "",
        "x" * 129,
        " acme",
        "acme ",
        "acme\n",
        "\nacme",
        "ac me",
        "ac/me",
        "acme\0",
        "ac,me",
        "äcme",
        "acm\u0435",
        "٣",
        "a=b",
    ],
)
def test_bad_tenant_ids(tenant_id: str) -> None:
    """Anything else is refused, letters and digits of other scripts and a newline at the end too."""
    with pytest.raises(InvalidRequest, match=r"^tenant_id must be 1 to 128 characters of \[A-Za-z0-9\._:-\]$"):
        check_tenant_id(tenant_id)


@given(st.text(min_size=1, max_size=4))
def test_tenant_ids_by_character(tenant_id: str) -> None:
    """No character outside of the listed ones is let through."""
    if set(tenant_id) <= set(TENANT_CHARACTERS):
        assert tenant_id == check_tenant_id(tenant_id)
    else:
        with pytest.raises(InvalidRequest):
            check_tenant_id(tenant_id)


def test_key_ids() -> None:
    """A key id is 32 lower-case hexadecimal digits, and comes back as it is."""
    assert KEY_ID == check_key_id(KEY_ID)


@pytest.mark.parametrize("key_id", ["", KEY_ID[:-1], KEY_ID + "0", KEY_ID.upper(), KEY_ID[:-1] + "g", KEY_ID + "\n"])
def test_bad_key_ids(key_id: str) -> None:
    """Anything else is refused, and the message tells where the right one is found."""
    with pytest.raises(InvalidRequest, match=r"^key_id must be the 32 lower-case hexadecimal digits"):
        check_key_id(key_id)


def test_caller_context_is_copied() -> None:
    """The caller's pairs come back as they are, in a mapping of our own."""
    pairs = {"purpose": "backup", "Größe": "", "keyId": "1"}
    checked = check_caller_context(pairs)
    assert pairs == checked
    assert pairs is not checked


@pytest.mark.parametrize("name", ["tenantId", "keyType", "aws-crypto-", "aws-crypto-public-key"])
def test_reserved_names_are_refused(name: str) -> None:
    """No caller sets what binds a key to its tenant, nor what belongs to the message format."""
    with pytest.raises(InvalidRequest, match=r"^encryption_context may not set tenantId, keyType"):
        check_caller_context({"a": "b", name: "acme"})


@pytest.mark.parametrize("name", ["tenantid", "tenantId ", "KeyType", "aws-crypto", "AWS-CRYPTO-x", "x-aws-crypto-y"])
def test_other_names_are_the_callers(name: str) -> None:
    """Names are compared byte for byte, so others that look alike are free."""
    assert {name: "acme"} == check_caller_context({name: "acme"})


def test_an_empty_name_is_refused() -> None:
    """A pair needs a name; its value may be empty."""
    with pytest.raises(InvalidRequest, match=r"^encryption_context may not have an empty name$"):
        check_caller_context({"": "value"})
    assert {"name": ""} == check_caller_context({"name": ""})


def test_the_message_names_the_field() -> None:
    """A request with two contexts says which of them is meant."""
    with pytest.raises(InvalidRequest, match=r"^destination_encryption_context may not set"):
        check_caller_context({"tenantId": "acme"}, "destination_encryption_context")


@pytest.mark.parametrize(
    "pairs",
    [
        {"a": "x" * 4088},
        {"a" * 4089: ""},
        {"é": "é" * 2043 + "x"},
        {f"{n:04}": "x" * 5 for n in range(256)} | {"0255": "x" * 260},
        {"a": "\x01" * 681 + "xx"},
    ],
    ids=["value", "name", "UTF-8", "many", "control characters"],
)
def test_the_size_limit(pairs: dict[str, str]) -> None:
    """4,096 bytes as JSON are taken, as KMS counts; one more is not, and the message tells the size."""
    last = next(reversed(pairs))
    assert pairs == check_caller_context(pairs)
    with pytest.raises(InvalidRequest, match=r"^encryption_context has 4097 bytes as JSON"):
        check_caller_context({**pairs, last: pairs[last] + "x"})


def test_the_size_is_told_without_the_pairs() -> None:
    """A context may be confidential: a refusal shows none of it."""
    with pytest.raises(InvalidRequest) as refused:
        check_caller_context({"tenantId": "s3cret", "s3cret": "s3cret" * 1000})
    assert "s3cret" not in refused.value.message


def test_whole_contexts() -> None:
    """The server adds tenant and use to what KMS binds; a signing key is bound to its id too."""
    assert {"a": "b", "tenantId": "acme", "keyType": "encryption"} == encryption_context("acme", {"a": "b"})
    assert {"tenantId": "acme", "keyType": "signing", "keyId": KEY_ID} == signing_context("acme", KEY_ID)


def test_the_servers_pairs_are_stronger() -> None:
    """Even pairs that were not checked cannot name another tenant or use."""
    caller = {"tenantId": "other", "keyType": "signing"}
    assert {"tenantId": "acme", "keyType": "encryption"} == encryption_context("acme", caller)
    assert {"tenantId": "other", "keyType": "signing"} == caller


def test_no_caller_reaches_a_signing_key() -> None:
    """A caller who names a key id still gets an encryption context: no data key unwraps as a signing key."""
    assert signing_context("acme", KEY_ID) != encryption_context("acme", {"keyId": KEY_ID})


@given(st.sampled_from(["acme", "globex"]), caller_pairs, caller_pairs)
def test_contexts_belong_to_one_tenant_and_one_set_of_pairs(
    tenant_id: str, caller: dict[str, str], other: dict[str, str]
) -> None:
    """A whole context belongs to exactly the tenant and the pairs that it was made of, whatever their order."""
    whole = dict(reversed(encryption_context(tenant_id, caller).items()))
    assert belongs_to(whole, tenant_id, caller)
    assert not belongs_to(whole, tenant_id + "x", caller)
    assert (caller == other) == belongs_to(whole, tenant_id, other)


@pytest.mark.parametrize(
    "whole",
    [
        {},
        {"a": "b"},
        {"tenantId": "acme", "keyType": "encryption"},
        {"tenantId": "acme", "a": "b"},
        {"keyType": "encryption", "a": "b"},
        {"tenantId": "acme", "keyType": "signing", "a": "b"},
        {"tenantId": "acme", "keyType": "Sealing", "a": "b"},
        {"tenantId": "ACME", "keyType": "sealing", "a": "b"},
        {"tenantId": "ACME", "keyType": "encryption", "a": "b"},
        {"tenantId": "acme", "keyType": "encryption", "a": "B"},
        {"tenantId": "acme", "keyType": "encryption", "a": "b", "c": ""},
        {"tenantId": "acme", "keyType": "encryption", "A": "b"},
    ],
)
def test_other_contexts_do_not_belong(whole: dict[str, str]) -> None:
    """A pair too many, too few or other than the caller's, and the message is not the caller's."""
    assert not belongs_to(whole, "acme", {"a": "b"})


@pytest.mark.parametrize("key_type", ["encryption", "sealing"])
def test_messages_of_both_key_types_belong(key_type: DataKeyType) -> None:
    """Those of official SDKs and of earlier versions have the one, and new ones the other."""
    assert belongs_to(encryption_context("acme", {"a": "b"}, key_type), "acme", {"a": "b"})


def test_pairs_of_the_format_are_nobodys() -> None:
    """The message format's own pairs are left out of the comparison."""
    whole = {**encryption_context("acme", {"a": "b"}), "aws-crypto-public-key": "AAAA"}
    assert belongs_to(whole, "acme", {"a": "b"})
    assert not belongs_to(whole, "acme", {"a": "b", "aws-crypto-public-key": "AAAA"})
