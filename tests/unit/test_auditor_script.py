"""docs/auditor/verify_spans.py and docs/signed-spans.md: what they say is what our code does."""

import ast
import importlib.util
import json
import math
import re
import struct
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rfc8785
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import (
    PAYLOAD_TYPE,
    TREE_HEAD_TYPE,
    PublicKey,
    SpanVerifier,
    canonical_span,
    jwks_text,
    pre_authentication_encoding,
    read_jwks,
    sign,
    sign_tree,
    span_from_json,
    span_to_json,
    tree_head,
)
from betrace_kms_evidence.merkle import MerkleTree, leaf_hash
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_canonical import KEY_ID, TENANT, spans
from tests.unit.test_span_vectors import VECTORS, Vector
from tests.unit.test_tree_head import TREES

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = DOCS / "auditor" / "verify_spans.py"
FORMAT = (DOCS / "signed-spans.md").read_text("utf-8")
NUMBERS = json.loads((Path(__file__).parents[1] / "vectors" / "rfc8785_numbers.json").read_text("utf-8"))["vectors"]

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STATUSES = {KEY_ID: "ACTIVE", "rotated": "ROTATED", "revoked": "REVOKED"}
JWKS = jwks_text(TENANT, [PublicKey(each, KEY.public_key().public_bytes_raw(), STATUSES[each]) for each in STATUSES])
IDS = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331"}
TIMES = st.builds(Timestamp, seconds=st.integers(-62_135_596_800, 253_402_300_799), nanos=st.integers(0, 999_999_999))


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_spans", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = loaded(SCRIPT)


def signed_document(
    span: Mapping[str, Any], signature: bytes, key_id: str, proof: pb.InclusionProof | None = None
) -> dict[str, Any]:
    """Give the JSON that `betrace-kms sign` writes."""
    return {
        "span": span,
        "signature": b64encode(signature).decode(),
        "keyId": key_id,
        "algorithm": "Ed25519",
        "payloadType": PAYLOAD_TYPE if proof is None else TREE_HEAD_TYPE,
        **({} if proof is None else {"proof": MessageToDict(proof)}),
    }


def one_signed(members: Mapping[str, Any], key_id: str = KEY_ID) -> dict[str, Any]:
    payload = canonical_span(TENANT, key_id, span_from_json(members))
    return signed_document(members, sign(KEY, payload), key_id)


def batch_signed(messages: Sequence[pb.ComplianceSpan], time: Timestamp) -> list[dict[str, Any]]:
    tree = sign_tree(KEY, TENANT, KEY_ID, [canonical_span(TENANT, KEY_ID, span) for span in messages], time)
    return [
        signed_document(span_to_json(span), tree.signature, KEY_ID, tree.proof(index))
        for index, span in enumerate(messages)
    ]


def verdict(document: Any, jwks: str = JWKS) -> str:
    """Give the script's verdict on a document, or on its text."""
    key_set = json.loads(jwks)
    keys = {jwk["kid"]: jwk for jwk in key_set["keys"]}
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    answer: str = script.verdict(key_set["tenant_id"], keys, text)
    return answer


def our_verdict(document: Mapping[str, Any], jwks: str = JWKS) -> str:
    """Give the verdict of our verification on a document."""
    proof = ParseDict(document["proof"], pb.InclusionProof()) if "proof" in document else None
    signature = b64decode(document["signature"])
    return SpanVerifier(read_jwks(jwks)).verify(span_from_json(document["span"]), signature, document["keyId"], proof)


def set_of(vector: Vector, tenant_id: str | None = None) -> str:
    key = PublicKey(vector["key_id"], bytes.fromhex(vector["public_key"]), "ACTIVE")
    return jwks_text(tenant_id or vector["tenant_id"], [key])


def run(*arguments: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_it_is_short() -> None:
    """An auditor reads the whole of it: less than 240 lines."""
    assert 240 > len(SCRIPT.read_text("utf-8").splitlines())


def test_it_depends_on_cryptography_alone() -> None:
    """It imports the standard library and `cryptography`, and nothing else."""
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert 0 == node.level
            imported.add(node.module.split(".")[0])
    assert {"cryptography"} == imported - sys.stdlib_module_names


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_span_vectors(vector: Vector) -> None:
    """Every frozen span has its frozen bytes and verifies, and does not as another tenant's."""
    members = json.loads(json.dumps(vector["span"]), parse_int=float)
    canonical = script.canonical_span(vector["tenant_id"], vector["key_id"], members)
    assert vector["canonical"].encode() == canonical
    document = signed_document(vector["span"], bytes.fromhex(vector["signature"]), vector["key_id"])
    assert "VALID" == verdict(document, set_of(vector))
    assert "BAD_SIGNATURE" == verdict(document, set_of(vector, "another"))


@pytest.mark.parametrize("vector", TREES, ids=lambda vector: vector["name"])
def test_tree_vectors(vector: Vector) -> None:
    """Every frozen proof verifies, and none with another proof's place or as another tenant's."""
    for frozen in vector["proofs"]:
        members = json.loads(vector["payloads"][frozen["leaf_index"]])
        span = {name: members[name] for name in members if name not in ("tenantId", "keyId")}
        proof = {
            "leafIndex": str(frozen["leaf_index"]),
            "treeSize": str(len(vector["payloads"])),
            "rootHash": b64encode(bytes.fromhex(vector["root_hash"])).decode(),
            "hashes": [b64encode(bytes.fromhex(sibling)).decode() for sibling in frozen["hashes"]],
            "signTime": vector["sign_time"],
        }
        document = signed_document(span, bytes.fromhex(vector["signature"]), vector["key_id"])
        document |= {"proof": proof, "payloadType": TREE_HEAD_TYPE}
        assert "VALID" == verdict(document, set_of(vector))
        assert "BAD_SIGNATURE" == verdict(document, set_of(vector, "another"))
        other = {**proof, "leafIndex": str(frozen["leaf_index"] + 1)}
        assert "BAD_SIGNATURE" == verdict({**document, "proof": other}, set_of(vector))


@pytest.mark.parametrize("vector", NUMBERS, ids=lambda vector: vector["ieee754"])
def test_numbers_of_the_rfc(vector: Mapping[str, str]) -> None:
    """Doubles are written as RFC 8785, appendix B, prints them."""
    (number,) = struct.unpack(">d", bytes.fromhex(vector["ieee754"]))
    assert vector["json"] == script.number(number)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks(number: float) -> None:
    """NaN and the infinities are refused, as numbers and in a document."""
    with pytest.raises(ValueError, match="no canonical form"):
        script.number(number)
    document = one_signed({**IDS, "attributes": {"a": {"doubleValue": 1.5}}})
    document["span"]["attributes"]["a"]["doubleValue"] = number
    assert verdict(document).startswith("MALFORMED")
    huge = json.dumps(document).replace(json.dumps(number), "1e999").encode()
    assert verdict(huge).startswith("MALFORMED")


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.5, "15e-1"), (1e21, "1" + "0" * 21), (2.0**53, "9007199254740993"), (0.0, "-0"), (0.0, "0.0")],
)
def test_numbers_in_other_words(number: float, text: str) -> None:
    """A number of JSON is the double that is nearest to it, however it is written."""
    document = one_signed({**IDS, "attributes": {"a": {"doubleValue": number}}})
    other = json.dumps(document).replace(json.dumps({"doubleValue": number}), f'{{"doubleValue": {text}}}')
    assert text in other
    assert "VALID" == verdict(other.encode())


@settings(max_examples=1000, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number(number: float) -> None:
    """Whatever the double, its text is that of the rfc8785 package."""
    assert rfc8785.dumps(number).decode() == script.number(number)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_any_json(value: Any) -> None:
    """Whatever the JSON, its text is that of the rfc8785 package."""
    assert rfc8785.dumps(value) == script.canonical(value).encode()


@settings(max_examples=200, deadline=None)
@given(spans())
def test_any_span(drawn: tuple[pb.ComplianceSpan, dict[str, Any]]) -> None:
    """Whatever the span: same bytes as ours, valid as signed, and bad with another name or signature."""
    message, _ = drawn
    members = span_to_json(message)
    payload = canonical_span(TENANT, KEY_ID, message)
    text = json.dumps(members).encode()
    assert payload == script.canonical_span(TENANT, KEY_ID, script.parse(text))
    document = signed_document(members, sign(KEY, payload), KEY_ID)
    assert "VALID" == verdict(document) == our_verdict(document)
    altered = {**document, "span": {**members, "name": members.get("name", "") + "x"}}
    assert "BAD_SIGNATURE" == verdict(altered) == our_verdict(altered)


@settings(max_examples=60, deadline=None)
@given(st.lists(spans(), min_size=1, max_size=9), TIMES, st.data())
def test_any_batch(
    drawn: Sequence[tuple[pb.ComplianceSpan, dict[str, Any]]], time: Timestamp, data: st.DataObject
) -> None:
    """Whatever the batch and its time: each span is proved, and a proof with another time or sibling is not."""
    documents = batch_signed([message for message, _ in drawn], time)
    assert ["VALID"] * len(documents) == [verdict(document) for document in documents]
    document = data.draw(st.sampled_from(documents))
    assert "VALID" == our_verdict(document)
    changes = [("leafIndex", str(len(documents))), ("treeSize", str(len(documents) + 1)), ("hashes", [])]
    changes += [("hashes", [*document["proof"].get("hashes", []), b64encode(bytes(32)).decode()])]
    changes += [("rootHash", b64encode(bytes(32)).decode()), ("signTime", "2001-02-03T04:05:06.000000001Z")]
    name, value = data.draw(
        st.sampled_from([each for each in changes if document["proof"].get(each[0], []) != each[1]])
    )
    altered = {**document, "proof": {**document["proof"], name: value}}
    assert "BAD_SIGNATURE" == verdict(altered) == our_verdict(altered)


@pytest.mark.parametrize(
    ("key_id", "expected"), [(KEY_ID, "VALID"), ("rotated", "VALID"), ("revoked", "KEY_REVOKED"), ("no", "UNKNOWN_KEY")]
)
def test_verdicts(key_id: str, expected: str) -> None:
    """Its verdicts are ours."""
    document = one_signed({**IDS, "name": "user.login"}, key_id)
    assert expected == verdict(document) == our_verdict(document)


def test_a_status_of_the_future() -> None:
    """A key whose status it does not know is not trusted."""
    assert "KEY_REVOKED" == verdict(one_signed(IDS), JWKS.replace("ACTIVE", "SUSPENDED"))


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {member: document[member] for member in document if member != name}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda d: {**d, "signature": d["signature"][:-4] + "AA=="}, "BAD_SIGNATURE", id="last byte"),
        pytest.param(lambda d: {**d, "signature": ""}, "MALFORMED", id="no bytes"),
        pytest.param(lambda d: {**d, "signature": "!"}, "MALFORMED", id="no base64"),
        pytest.param(lambda d: {**d, "signature": None}, "MALFORMED", id="null signature"),
        pytest.param(lambda d: {**d, "keyId": "rotated"}, "BAD_SIGNATURE", id="another key id"),
        pytest.param(lambda d: {**d, "keyId": ["a"]}, "MALFORMED", id="list as key id"),
        pytest.param(lambda d: {**d, "payloadType": TREE_HEAD_TYPE}, "MALFORMED", id="type of a head"),
        pytest.param(lambda d: {**d, "payloadType": PAYLOAD_TYPE.replace("v1", "v2")}, "MALFORMED", id="version 2"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "tenantId": TENANT}}, "MALFORMED", id="tenant in span"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "keyId": KEY_ID}}, "MALFORMED", id="key id in span"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "note": "x"}}, "MALFORMED", id="unknown member"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "error": ""}}, "BAD_SIGNATURE", id="empty for null"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "attributes": None}}, "BAD_SIGNATURE", id="null attributes"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "attributes": {}}}, "BAD_SIGNATURE", id="no attributes"),
        pytest.param(lambda d: {**d, "span": []}, "MALFORMED", id="list as span"),
        pytest.param(lambda d: {**d, "proof": {}}, "MALFORMED", id="empty proof"),
        pytest.param(lambda d: [d], "MALFORMED", id="list"),
        pytest.param(without("span"), "MALFORMED", id="no span"),
        pytest.param(without("keyId"), "MALFORMED", id="no key id"),
        pytest.param(without("signature"), "MALFORMED", id="no signature"),
        pytest.param(without("algorithm"), "VALID", id="no algorithm"),
        pytest.param(without("payloadType"), "VALID", id="no payload type"),
        pytest.param(lambda d: {**d, "proof": None}, "MALFORMED", id="null proof"),
        pytest.param(lambda d: {**d, "span": dict(reversed(d["span"].items()))}, "VALID", id="order of members"),
        pytest.param(lambda d: {**d, "span": {**d["span"], "error": None}}, "VALID", id="null"),
    ],
)
def test_altered_documents(change: Callable[[dict[str, Any]], Any], expected: str) -> None:
    """What is signed cannot be changed; what only repeats the format may be left out."""
    pairs = [{"key": "b", "value": {"intValue": "1"}}, {"key": "a", "value": {}}]
    attributes = {"list": {"kvlistValue": {"values": pairs}}}
    document = one_signed({**IDS, "name": "user.login", "attributes": attributes})
    assert "VALID" == verdict(document)
    assert expected == verdict(change(document)).split()[0]


def every_value_changed(value: Any) -> list[Any]:
    """Give a JSON value with one leaf changed, one at a time, every leaf once."""
    match value:
        case dict():
            return [{**value, name: new} for name in value for new in every_value_changed(value[name])]
        case list():
            return [
                [*value[:at], new, *value[at + 1 :]] for at, old in enumerate(value) for new in every_value_changed(old)
            ]
        case bool():
            return [not value]
        case str():
            return [value + "x", value[:-1]] if value else ["x"]
        case None:
            return ["x"]
    return [value + 1]


def test_every_altered_value_fails() -> None:
    """Every single leaf of a span and of a proof counts, down to the values of nested lists."""
    every_value = next(dict(vector) for vector in VECTORS if vector["name"] == "every value type")["span"]
    members = {**every_value, "startTimeUnixNano": "5", "durationNano": "-5", "result": "", "parentSpanId": "01" * 8}
    alone = one_signed(members)
    batched, _ = batch_signed(
        [span_from_json(members), span_from_json({**IDS, "name": "second"})], Timestamp(seconds=5)
    )
    for document, parts in ((alone, ["span"]), (batched, ["span", "proof"])):
        assert "VALID" == verdict(document)
        for part in parts:
            for altered in every_value_changed(document[part]):
                assert verdict({**document, part: altered}).split()[0] in ("BAD_SIGNATURE", "MALFORMED"), altered


def test_paths_of_a_wrong_length() -> None:
    """A path that is too short or too long, or not of hashes, proves nothing, even if its root is given to suit it."""

    def node(left: bytes, right: bytes) -> bytes:
        return sha256(b"\x01" + left + right).digest()

    leaf = leaf_hash(b"leaf")
    first, second, third = (bytes([number]) * 32 for number in range(3))
    whole = node(node(leaf, first), second)
    for size, hashes, root in (
        (3, [first, second], whole),
        (3, [first], node(leaf, first)),
        (3, [first, second, third], node(third, whole)),
        (1, [first], node(first, leaf)),
        (2, [], leaf),
        (0, [], leaf),
    ):
        proof = {
            "treeSize": str(size),
            "hashes": [b64encode(sibling).decode() for sibling in hashes],
            "rootHash": b64encode(root).decode(),
            "signTime": "2024-01-02T03:04:05Z",
        }
        if root == whole:
            assert root.hex() in script.tree_head(TENANT, KEY_ID, b"leaf", script.read_proof(proof)).decode()
        else:
            with pytest.raises(InvalidSignature):
                script.tree_head(TENANT, KEY_ID, b"leaf", script.read_proof(proof))
        for other in (first[:31], b""):
            with pytest.raises(ValueError, match="32 bytes"):
                script.read_proof({**proof, "hashes": [b64encode(other).decode()]})


def test_duplicates_are_refused() -> None:
    """A member that is there twice, or a key that a list has twice, is refused wherever it is."""
    good = json.dumps(one_signed({**IDS, "name": "a", "attributes": {"k": {"stringValue": "v"}}}))
    assert "VALID" == verdict(good.encode())
    for member in ('"name": "a"', '"k": {"stringValue": "v"}', '"stringValue": "v"', f'"keyId": "{KEY_ID}"'):
        assert good.count(member) == 1
        assert "MALFORMED ValueError('an object has a member twice')" == verdict(
            good.replace(member, f"{member}, {member}").encode()
        )
    pairs = [{"key": "k", "value": {}}, {"key": "k", "value": {}}]
    document = one_signed(IDS)
    for value in (
        {"kvlistValue": {"values": pairs}},
        {"arrayValue": {"values": [{"kvlistValue": {"values": pairs}}]}},
        {"kvlistValue": {"values": [{"key": "a", "value": {"kvlistValue": {"values": pairs}}}]}},
    ):
        document["span"] = {**IDS, "attributes": {"list": value}}
        assert "MALFORMED ValueError('an object has a member twice')" == verdict(document)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"{",
        b"[]",
        b"\xff",
        b'{"keyId": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_rubbish(text: bytes) -> None:
    """Whatever is no signed span is told as such, without an accident."""
    assert verdict(text).split()[0] in ("MALFORMED", "UNKNOWN_KEY")


def test_half_a_surrogate_pair() -> None:
    """Text that is not valid Unicode has no canonical form."""
    assert verdict({**one_signed(IDS), "span": {**IDS, "name": "\ud800"}}).startswith("MALFORMED")


def test_deep_values() -> None:
    """Deep nesting is refused, not a crash."""
    text = json.dumps(one_signed(IDS)).replace('"span": {', '"span": {"attributes": {"a": @}, ')
    deep = '{"arrayValue":{"values":[' * 5000 + "{}" + "]}}" * 5000
    assert verdict(text.replace("@", deep).encode()).startswith("MALFORMED")


def test_a_document(tmp_path: Path) -> None:
    """It reads an indented document as sign writes it, says VALID and exits with 0."""
    (tmp_path / "keys.json").write_text(JWKS)
    (tmp_path / "signed.json").write_text(json.dumps(one_signed({**IDS, "name": "\u2028é😀"}), indent=2) + "\n")
    done = run(tmp_path / "keys.json", tmp_path / "signed.json")
    assert (0, "1: VALID\n", "") == (done.returncode, done.stdout, done.stderr)


def test_json_lines(tmp_path: Path) -> None:
    """It reads JSON lines, gives a verdict for each, and exits with 1 if one is not valid."""
    good = one_signed({**IDS, "name": "line\u2028separator"})
    batch = batch_signed([span_from_json(IDS), span_from_json({**IDS, "name": "second"})], Timestamp(seconds=7))
    lines = [
        json.dumps(good, ensure_ascii=False),
        json.dumps(batch[1]),
        json.dumps({**good, "span": IDS}),
        json.dumps({**good, "keyId": "none"}),
        json.dumps(one_signed(IDS, "revoked")),
        '{"a": 1, "a": 2}',
        "\x1b[2J",
    ]
    (tmp_path / "keys.json").write_text(JWKS)
    (tmp_path / "signed.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    done = run(tmp_path / "keys.json", tmp_path / "signed.jsonl")
    verdicts = ["VALID", "VALID", "BAD_SIGNATURE", "UNKNOWN_KEY", "KEY_REVOKED", "MALFORMED", "MALFORMED"]
    assert [f"{place}: {each}" for place, each in enumerate(verdicts, 1)] == [
        " ".join(line.split()[:2]) for line in done.stdout.splitlines()
    ]
    assert (1, "") == (done.returncode, done.stderr)
    assert "\x1b" not in done.stdout


def test_it_cannot_begin(tmp_path: Path) -> None:
    """Without arguments, a file or a key set it says so in one line and exits with 2."""
    (tmp_path / "keys.json").write_text(JWKS)
    (tmp_path / "rubbish.json").write_text("{}")
    jwk = json.loads(JWKS)["keys"][0]
    (tmp_path / "twice.json").write_text(json.dumps({"tenant_id": TENANT, "keys": [jwk, jwk]}))
    (tmp_path / "signed.json").write_text(json.dumps(one_signed(IDS)))
    for keys, signed in (("none", "signed"), ("keys", "none"), ("rubbish", "signed"), ("twice", "signed")):
        done = run(tmp_path / f"{keys}.json", tmp_path / f"{signed}.json")
        assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert 2 == run().returncode


def test_an_empty_file_is_not_valid(tmp_path: Path) -> None:
    """A file without spans proves nothing."""
    (tmp_path / "keys.json").write_text(JWKS)
    (tmp_path / "signed.json").write_text("\n")
    assert 1 == run(tmp_path / "keys.json", tmp_path / "signed.json").returncode


def blocks() -> dict[str, str]:
    """Give the named blocks of the format's worked example."""
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)\n```$", FORMAT, re.MULTILINE | re.DOTALL))


def test_worked_example_of_a_span() -> None:
    """The example of the format is what our code makes of its seed and its span."""
    given_blocks = blocks()
    signed, jwks = json.loads(given_blocks["signed.json"]), given_blocks["keys.json"]
    (seed,) = re.findall(r"its seed is\s`([0-9a-f]{64})`", FORMAT)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    (public_key,) = read_jwks(jwks).keys.values()
    assert key.public_key().public_bytes_raw() == public_key.raw
    assert jwks == jwks_text("acme", [public_key])
    span = span_from_json(signed["span"])
    payload = canonical_span("acme", signed["keyId"], span)
    assert given_blocks["canonical-span"] == payload.decode()
    assert f"{len(payload)} bytes" in FORMAT
    assert given_blocks["pre-authentication-encoding"] == pre_authentication_encoding(PAYLOAD_TYPE, payload).decode()
    assert signed == signed_document(span_to_json(span), sign(key, payload), public_key.key_id)


def test_worked_example_of_a_batch() -> None:
    """So is the example's tree: leaves, node, root, head and proof."""
    given_blocks = blocks()
    first, proved = json.loads(given_blocks["signed.json"]), json.loads(given_blocks["proved.json"])
    (seed,) = re.findall(r"its seed is\s`([0-9a-f]{64})`", FORMAT)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    key_id, time = proved["keyId"], Timestamp()
    time.FromJsonString("2024-01-02T03:04:05.6Z")
    second = {**proved["span"], "spanId": proved["span"]["spanId"][:-2] + "02"}
    payloads = [
        canonical_span("acme", key_id, span_from_json(each)) for each in (first["span"], second, proved["span"])
    ]
    tree = sign_tree(key, "acme", key_id, payloads, time)
    root = MerkleTree(payloads).root_hash
    assert given_blocks["leaf-hashes"].split() == [leaf_hash(payload).hex() for payload in payloads]
    assert given_blocks["node-and-root"].split() == [MerkleTree(payloads[:2]).root_hash.hex(), root.hex()]
    assert given_blocks["tree-head"] == tree_head("acme", key_id, root, 3, time).decode()
    assert proved == signed_document(proved["span"], tree.signature, key_id, tree.proof(2))


def test_payload_types_are_those_of_the_format() -> None:
    """The types that the format names are those that we sign with."""
    for kind in (PAYLOAD_TYPE, TREE_HEAD_TYPE):
        assert f"\n    {kind}\n" in FORMAT
    assert f"`DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} `" in FORMAT
