"""Key sets: written and read again, as RFC 8037 has them, and refused where they are none of ours."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from betrace_kms_evidence import InvalidKeySet, PublicKey, jwks_text, read_jwks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curve25519 import PRIME, small_order_ys

# RFC 8037, appendix A.1 and A.2: the key; appendix A.4: what it signed as a JWS.
D = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
SIGNED = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
SIGNATURE = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"

JWK: Mapping[str, Any] = {"kty": "OKP", "crv": "Ed25519", "x": X, "kid": "a"}


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def document(*keys: Any, **members: Any) -> str:
    return json.dumps({"keys": keys, "tenant_id": "acme", **members})


public_keys = st.builds(
    PublicKey,
    key_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    raw=st.binary(min_size=32, max_size=32).map(
        lambda seed: Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    ),
    status=st.sampled_from(["ACTIVE", "ROTATED", "REVOKED"]),
    create_time=st.just("2024-01-02T03:04:05Z"),
    rotate_time=st.sampled_from(["", "2024-02-02T03:04:05.123Z"]),
    revoke_time=st.sampled_from(["", "2024-03-02T03:04:05.123456789Z"]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(public_keys, max_size=4, unique_by=lambda key: key.key_id))
def test_what_is_written_is_read(keys: list[PublicKey]) -> None:
    """Keys come back as they were, in their order, with one verifier each."""
    read = read_jwks(jwks_text("acme", keys))
    assert "acme" == read.tenant_id
    assert keys == list(read.keys.values())
    assert {key.key_id: key.raw for key in keys} == {
        key_id: verifier.public_bytes_raw() for key_id, verifier in read.verifiers.items()
    }


def test_members() -> None:
    """A key has the members of RFC 7517 and RFC 8037, ours, and no time that does not apply."""
    key = PublicKey("a", decoded(X), "ROTATED", "2024-01-02T03:04:05Z", "2024-02-02T03:04:05Z")
    assert {
        "tenant_id": "acme",
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "alg": "EdDSA",
                "use": "sig",
                "kid": "a",
                "x": X,
                "status": "ROTATED",
                "create_time": "2024-01-02T03:04:05Z",
                "rotate_time": "2024-02-02T03:04:05Z",
            }
        ],
    } == json.loads(jwks_text("acme", [key]))


def test_key_of_rfc_8037() -> None:
    """The public key of appendix A.2 is that of the private key of A.1, and verifies the signature of A.4."""
    private_key = Ed25519PrivateKey.from_private_bytes(decoded(D))
    assert (
        X
        == json.loads(jwks_text("t", [PublicKey("a", private_key.public_key().public_bytes_raw(), "ACTIVE")]))["keys"][
            0
        ]["x"]
    )
    read_jwks(document(JWK)).verifiers["a"].verify(decoded(SIGNATURE), SIGNED)


def test_no_padding() -> None:
    """The key is base64url without padding, as RFC 7515 wants it; with padding it has a second spelling."""
    assert decoded(X) == read_jwks(document(JWK)).keys["a"].raw
    assert {} == read_jwks(document({**JWK, "x": X + "="})).keys


def test_a_plain_key_set() -> None:
    """A set without our members serves, if the caller says whose it is; its keys are active."""
    read = read_jwks(json.dumps({"keys": [JWK]}), "acme")
    assert ("acme", "ACTIVE") == (read.tenant_id, read.keys["a"].status)


@pytest.mark.parametrize(
    "other",
    [
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "b"},
        {"kty": "EC", "crv": "P-256", "x": X, "y": X, "kid": "b"},
        {"kty": "OKP", "crv": "X25519", "x": X, "kid": "b"},
        {"kty": "OKP", "crv": "Ed448", "x": X, "kid": "b"},
        {"kty": "oct", "k": "AQAB"},
    ],
    ids=lambda jwk: jwk.get("crv", jwk["kty"]),
)
def test_other_types_are_ignored(other: Mapping[str, str]) -> None:
    """Keys that are not Ed25519 are not ours to judge (RFC 7517, section 5), and verify nothing."""
    assert ["a"] == list(read_jwks(document(other, JWK)).keys)


def test_unknown_members_are_ignored() -> None:
    """Members that this version does not know change nothing (RFC 7517, section 4)."""
    assert ["a"] == list(read_jwks(document({**JWK, "x5u": "https://example.com", "ext": True}, more=1)).keys)


def test_another_tenants_set() -> None:
    """A set that names another tenant than the caller is not used."""
    with pytest.raises(InvalidKeySet, match="belongs to another tenant"):
        read_jwks(document(JWK), "other")
    assert "acme" == read_jwks(document(JWK), "acme").tenant_id


SMALL = [y + sign for y in sorted({*small_order_ys(), PRIME, PRIME + 1}) for sign in (0, 2**255)]


def encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize(
    "change",
    [
        *({"x": value} for value in (X[:-2], X + "AAAA", "!", "", None, 7, X + "=", " " + X, X[:-1] + "!")),
        {"x": encoded(bytes(31))},
        {"x": encoded(bytes(33))},
        {"x": X.translate(str.maketrans("-_", "+/"))} if set(X) & {"-", "_"} else {"x": "+" + X[1:]},
        {"kty": "EC"},
        {"kty": None},
        {"crv": "X25519"},
        {"use": "enc"},
        {"use": None},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "HS256"},
        {"alg": "RS256"},
        {"alg": None},
        {"d": X},
        {"d": None},
        {"kid": ""},
        {"kid": None},
        {"kid": 7},
        {"kid": ["a"]},
        *({"x": encoded(number.to_bytes(32, "little"))} for number in SMALL),
    ],
    ids=str,
)
def test_key_of_no_use_is_skipped_and_the_others_are_read(change: dict[str, Any]) -> None:
    """A foreign key, a private one, one of small order and junk are not taken, and make no other key unreadable."""
    key_set = read_jwks(document({**JWK, "kid": "other", **change}, JWK))
    assert (["a"], ["a"]) == (list(key_set.keys), list(key_set.verifiers))


def test_key_without_x_or_kid_is_skipped() -> None:
    """So is one that lacks what a key needs."""
    for missing in ("x", "kid", "kty", "crv"):
        other = {name: JWK[name] for name in JWK if name != missing}
        assert ["a"] == list(read_jwks(document({**other, "kid": "b"} if missing != "kid" else other, JWK)).keys)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"keys"',
        "{}",
        '{"keys": []}',
        '{"tenant_id": "acme"}',
        document("key"),
        document(None),
        '{"tenant_id": "acme", "keys": null}',
        '{"tenant_id": "acme", "keys": 7}',
        '{"tenant_id": "acme", "keys": {"a": 1}}',
        b"\xff",
    ],
)
def test_rubbish(text: str | bytes) -> None:
    """Whatever is no key set is refused with one sentence, which quotes none of it."""
    with pytest.raises(InvalidKeySet) as refused:
        read_jwks(text)
    assert "this is no key set as `betrace-kms keys --jwks` writes it" == str(refused.value)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["keys", "tenant_id", "crv", "kty", "kid", "x", "status"]), inner, max_size=5
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_is_an_accident(value: Any) -> None:
    """Any JSON is read, or refused as no key set; nothing else comes out."""
    try:
        read_jwks(json.dumps(value))
    except InvalidKeySet:
        return


@pytest.mark.parametrize("status", ["REVOKED", "revoked", None, "SUSPENDED", 1])
def test_a_status_that_is_not_known_is_not_trusted(status: object) -> None:
    """Only ACTIVE and ROTATED keys verify; a key set of a later version must not make us trust more."""
    document = json.loads(jwks_text("acme", [PublicKey("kid", bytes(31) + b"\x01", "ACTIVE")]))
    document["keys"][0]["status"] = status
    assert read_jwks(json.dumps(document)).keys["kid"].status == "REVOKED"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"status": "ACTIVE"', '"status": "REVOKED", "status": "ACTIVE"'),
        lambda text: text.replace('"tenant_id": "acme"', '"tenant_id": 5'),
        lambda text: text.replace('"tenant_id": "acme"', '"tenant_id": ""'),
        lambda text: json.dumps({**json.loads(text), "keys": json.loads(text)["keys"] * 2}),
    ],
    ids=["name twice", "tenant", "no tenant", "kid twice"],
)
def test_an_ambiguous_key_set_is_refused(change: Callable[[str], str]) -> None:
    """Readers that take one of two for granted could be shown another key than the one that verifies."""
    text = change(json.dumps(json.loads(jwks_text("acme", [PublicKey("kid", bytes(31) + b"\x01", "ACTIVE")]))))
    with pytest.raises(InvalidKeySet):
        read_jwks(text)
