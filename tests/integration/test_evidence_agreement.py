"""Four readers of signed spans give one verdict: the command offline and with a daemon, the auditor's script, Node.js.

The corpus is made from spans that a daemon signed: every member, in every spelling that some reader of JSON might take,
in every place. docs/signed-spans.md says which verdict each kind gets.
"""

import importlib.util
import json
import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan, InclusionProof
from betrace_kms_client import InvalidRequest, KmsClient, SignedSpan, SpanRefusal, SpanSignature
from betrace_kms_client.cli import main
from betrace_kms_client.otlp.signature import proof_text
from betrace_kms_evidence import read_signed_span, span_from_json, span_to_json
from click.testing import CliRunner

from tests.curve25519 import PRIME, small_order_ys
from tests.daemon import Process, spawned
from tests.interop import node_verifier

TENANT = "acme"
SCRIPT = Path(__file__).parents[2] / "docs/auditor/verify_spans.py"
SPAN = {
    "traceId": "0af7651916cd43dd8448eb211c80319c",
    "spanId": "b7ad6b7169203331",
    "parentSpanId": "b7ad6b7169203332",
    "name": "user.login",
    "framework": "soc2",
    "startTimeUnixNano": "1704164645006000000",
    "durationNano": "1500000",
    "attributes": {
        "text": {"stringValue": "a"},
        "whole": {"intValue": "42"},
        "real": {"doubleValue": 1.5},
        "flag": {"boolValue": True},
        "raw": {"bytesValue": "AAEC"},
        "list": {"arrayValue": {"values": [{"intValue": "1"}, {}]}},
        "pairs": {"kvlistValue": {"values": [{"key": "k", "value": {"stringValue": "v"}}]}},
    },
}
ATTRIBUTES = frozenset({"text", "whole", "real", "flag", "raw", "list", "pairs"})
ORDER = 2**252 + 27742317777372353535851937790883648493
INTEGERS = (
    "+1",
    "01",
    "-0",
    "-1",
    " 1",
    "1 ",
    "1.0",
    "1e0",
    "0x1",
    "\u0661",
    "1_0",
    "",
    "99999999999999999999999999999999",
)
TEXTS: tuple[Any, ...] = (None, 1, 1.5, True, [], {}, "")
Case = tuple[str, str, str | None]
"""What is changed, the document, and the verdict that docs/signed-spans.md gives it, where it gives one."""


def dumped(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path to every member of every object."""
    for name, member in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        if isinstance(value, dict):
            yield (*path, name)
        yield from places(member, (*path, name))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        document = document[name]
    return document


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = deepcopy(document)
    at(copy, path[:-1])[path[-1]] = value
    return copy


def without(document: Any, path: tuple[Any, ...]) -> Any:
    copy = deepcopy(document)
    del at(copy, path[:-1])[path[-1]]
    return copy


def beside(document: Any, path: tuple[Any, ...], name: str, value: Any, *, before: bool = False) -> str:
    """Return text in which the object that a path leads into has one more member, of a name that may be there."""
    copy = deepcopy(document)
    owner = at(copy, path[:-1])
    members = list(owner.items())
    marked = {f"#{number}": member for number, (_, member) in enumerate(members)}
    owner.clear()
    owner.update({"#new": value, **marked} if before else {**marked, "#new": value})
    text = dumped(copy)
    for number, (each, _) in enumerate(members):
        text = text.replace(f'"#{number}":', f"{json.dumps(each)}:", 1)
    return text.replace('"#new":', f"{json.dumps(name)}:", 1)


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower()


def spellings(name: str, value: Any) -> Iterator[Any]:
    """Give other spellings of a value, some of which some readers take for the same."""
    if name in ("startTimeUnixNano", "durationNano", "intValue", "leafIndex", "treeSize"):
        yield from (
            int(value),
            float(value),
            f"+{value}",
            f"0{value}",
            f" {value}",
            f"{value} ",
            f"{value}.0",
            f"{value}e0",
        )
        yield from INTEGERS
        yield from (str(2**63), str(2**64), str(-(2**63) - 1), "9" * 31)
    elif name in ("traceId", "spanId", "parentSpanId"):
        yield from (
            value.upper(),
            value[:-1],
            value + "0",
            value[:-2],
            f"0x{value}",
            "0" * len(value),
            b64encode(bytes.fromhex(value)).decode(),
        )
    elif name in ("signature", "bytesValue", "rootHash"):
        raw = b64decode(value)
        url = urlsafe_b64encode(raw).decode()
        yield from (
            value.rstrip("=") or "A",
            url + "=",
            value + "====",
            f" {value}",
            f"{value}\n",
            value[:-1],
            "!" + value[1:],
        )
        yield from (
            url,
            value.replace("+", "-"),
            stray_bits(value),
            b64encode(raw[:-1]).decode(),
            b64encode(raw + b"\0").decode(),
        )
    elif name == "signTime":
        yield from (
            value[:-1],
            value[:-1] + "+00:00",
            value.replace("T", " "),
            value.lower(),
            value[:-1] + "z",
            f" {value}",
        )
        yield from (
            re.sub(r"\.\d+", "", value),
            value[:-1] + "0000000000Z",
            "2024-02-30T00:00:00Z",
            "0000-01-01T00:00:00Z",
        )
        yield from (
            re.sub(r":\d\d(\.|Z)", r":60\1", value),
            "2024-01-01T24:00:00Z",
            "2024-W01-1T00:00:00Z",
            "\u0661" + value[1:],
        )
    elif name == "doubleValue":
        yield from ("1.5", 2, True, "NaN", 10**400)
    elif name == "payloadType":
        yield from (value.upper(), value.replace("v1", "v2"), "application/json")
    elif name == "algorithm":
        yield from ("ed25519", "EdDSA", "HS256")
    elif isinstance(value, str):
        yield from (f"{value} ", value.upper(), "\u00e9", "e\u0301")


def stray_bits(text: str) -> str:
    """Set a bit of the last digit that stands for nothing."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = text.rstrip("=")
    if len(body) == len(text):
        return text + "A"
    return body[:-1] + digits[digits.index(body[-1]) ^ 1] + text[len(body) :]


def cases(kind: str, document: dict[str, Any]) -> Iterator[Case]:
    """Give every change of one document."""
    yield f"{kind}: as it was signed", dumped(document), "VALID"
    yield f"{kind}: other order", dumped(dict(reversed(document.items()))), "VALID"
    for path in places(document):
        place, name, value = f"{kind}: {'.'.join(map(str, path))}", str(path[-1]), at(document, path)
        named = name not in ATTRIBUTES
        yield f"{place} twice", beside(document, path, name, value), "MALFORMED"
        for number, other in enumerate(("x", 1, None)):
            yield f"{place} twice, other {number}", beside(document, path, name, other), "MALFORMED"
            yield f"{place} twice, other {number} first", beside(document, path, name, other, before=True), "MALFORMED"
        if named and snake(name) != name:
            yield (
                f"{place} in snake case",
                dumped({**changed(document, path, value)}).replace(f'"{name}":', f'"{snake(name)}":', 1),
                "MALFORMED",
            )
            yield f"{place} and in snake case", beside(document, path, snake(name), value), "MALFORMED"
        yield f"{place} missing", dumped(without(document, path)), None
        for other in TEXTS:
            if other != value:
                yield f"{place} = {other!r}", dumped(changed(document, path, other)), None
        for other in spellings(name, value):
            if other != value:
                yield f"{place} = {other!r}"[:90], dumped(changed(document, path, other)), None
        if isinstance(value, dict) and not (len(path) == 3 or value.keys() & ATTRIBUTES):
            yield f"{place} with more", dumped(changed(document, path, {**value, "more": 1})), "MALFORMED"
    yield f"{kind}: more", dumped({**document, "more": 1}), "MALFORMED"
    yield f"{kind}: null proof", dumped({**document, "proof": None}), "MALFORMED"
    text = dumped(document)
    yield f"{kind}: byte order mark", "\ufeff" + text, None
    yield f"{kind}: NaN", text.replace("1.5", "NaN"), "MALFORMED" if "1.5" in text else None
    yield f"{kind}: trailing comma", text[:-1] + ",}", "MALFORMED"
    yield f"{kind}: comment", text[:-1] + "/* */}", "MALFORMED"
    yield f"{kind}: half a pair", text.replace("user.login", "\\ud800"), "MALFORMED" if "user.login" in text else None
    yield f"{kind}: escapes", text.replace("user.login", "user\\u002elogin"), "VALID"
    yield f"{kind}: deep", text.replace('"a"', "[" * 5000 + "]" * 5000), "MALFORMED" if '"a"' in text else None
    for depth, verdict in ((31, "BAD_SIGNATURE"), (32, "BAD_SIGNATURE"), (33, "MALFORMED"), (40, "MALFORMED")):
        for what, innermost in (("a value", "{}"), ("an empty list", '{"arrayValue": {"values": []}}')):
            nested = json.loads(innermost)
            for _ in range(depth):
                nested = {"arrayValue": {"values": [nested]}}
            attributes = changed(document, ("span", "attributes"), {"a": nested})
            yield f"{kind}: {what} in {depth} lists", dumped(attributes), verdict
    for payload in ("", "AAEC"):
        yield f"{kind}: payload {payload!r}", dumped({**document, "payload": payload}), "VALID"
    no_payloads: tuple[Any, ...] = ("x", "AAEC\n", 1, None)
    for no_payload in no_payloads:
        yield f"{kind}: payload {no_payload!r}", dumped({**document, "payload": no_payload}), "MALFORMED"
    for space in (" ", "\t", "\r", "\n", "\r\n\n"):
        yield f"{kind}: white space {space!r}", f"{space}{text}{space}", "VALID"
    for space in ("\v", "\f", "\0", "\x1c", "\u00a0", "\u2028"):
        yield f"{kind}: {space!r} before", space + text, "MALFORMED"
        yield f"{kind}: {space!r} behind", text + space, "MALFORMED"
    yield f"{kind}: indented", json.dumps(document, indent=2), "VALID"
    yield f"{kind}: a first line that ends with a brace", text.replace('}, "signature"', '}\n, "signature"'), "VALID"
    signature = b64decode(document["signature"])
    s = int.from_bytes(signature[32:], "little")
    for what, made in (
        ("S + order", signature[:32] + (s + ORDER).to_bytes(32, "little")),
        ("S = 0", signature[:32] + bytes(32)),
        ("R = 0", bytes(32) + signature[32:]),
        ("R = identity, S = 0", b"\1" + bytes(63)),
        ("top bit of R", signature[:31] + bytes([signature[31] ^ 0x80]) + signature[32:]),
        ("all ones", b"\xff" * 64),
    ):
        yield f"{kind}: {what}", dumped({**document, "signature": b64encode(made).decode()}), "BAD_SIGNATURE"


def key_sets(jwks: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Give key sets with one change, and the verdict on a good document."""
    key = jwks["keys"][0]

    def with_key(**change: Any) -> str:
        return dumped({**jwks, "keys": [{name: value for name, value in {**key, **change}.items() if value != ...}]})

    changes: dict[str, tuple[Any, ...]] = {
        "kty": ("EC", "okp", None, ..., 1),
        "crv": ("X25519", "ed25519", None, ...),
        "alg": ("HS256", "none", "Ed25519", None, 1),
        "use": ("enc", None, ["sig"]),
        "key_ops": (["sign"], "verify", None, [], {}),
        "d": ("x", None),
        "kid": ("", None, ..., 1, [], "other"),
        "x": (
            "",
            None,
            ...,
            1,
            key["x"] + "=",
            key["x"][:-1],
            key["x"] + "A",
            " " + key["x"],
            stray_bits(key["x"] + "=").rstrip("="),
        ),
    }
    for name, values in changes.items():
        for value in values:
            yield f"key {name} = {value!r}", with_key(**{name: value}), "UNKNOWN_KEY"
    yield "key key_ops with verify", with_key(key_ops=["verify"]), "VALID"
    for name in ("alg", "use", "status", "create_time"):
        yield f"key without {name}", with_key(**{name: ...}), "VALID"
    for y in sorted({*small_order_ys(), PRIME, PRIME + 1, 2**255 - 1}):
        for sign in (0, 2**255):
            small = urlsafe_b64encode((y + sign).to_bytes(32, "little")).decode().rstrip("=")
            yield f"key of y {y % 97} {bool(sign)}", with_key(x=small), "UNKNOWN_KEY"
    for status, verdict in (
        ("REVOKED", "KEY_REVOKED"),
        ("revoked", "KEY_REVOKED"),
        ("ROTATED", "VALID"),
        ("active", "KEY_REVOKED"),
        (None, "KEY_REVOKED"),
        (1, "KEY_REVOKED"),
        ([], "KEY_REVOKED"),
    ):
        yield f"key status {status!r}", with_key(status=status), verdict
    foreign = [{"kty": "EC", "crv": "P-256", "kid": key["kid"], "x": "x", "y": "y"}, {"kty": "oct", "k": "x"}, {}]
    yield "foreign keys", dumped({**jwks, "keys": [*foreign, *jwks["keys"]]}), "VALID"
    yield "key twice", dumped({**jwks, "keys": [key, key]}), None
    yield "kid twice", dumped({**jwks, "keys": [key, {**key, "status": "REVOKED"}]}), None
    yield "tenant of another", dumped({**jwks, "tenant_id": "rival"}), "BAD_SIGNATURE"
    for digits in ("1e400", "-1e400", "1" + "0" * 400, "1" * 5000):
        yield f"number {digits[:8]}", f'{dumped(jwks)[:-1]}, "more": {digits}}}', None
    yield "number 1e-400", f'{dumped(jwks)[:-1]}, "more": 1e-400}}', "VALID"
    no_keys: tuple[Any, ...] = (None, {}, "x", [1], [None], ["x"])
    for keys in no_keys:
        yield f"keys {keys!r}", dumped({**jwks, "keys": keys}), None
    no_tenants: tuple[Any, ...] = (None, "", 1, [], "a b", "a" * 129)
    for tenant in no_tenants:
        yield f"tenant {tenant!r}", dumped({**jwks, "tenant_id": tenant}), None


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Run one daemon for all documents."""
    with spawned("--data-dir", str(tmp_path_factory.mktemp("data")), "--listen", "127.0.0.1:0") as process:
        process.wait_for("serving")
        yield process


@pytest.fixture(scope="module")
def signed(daemon: Process) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return documents that the daemon signed, alone and in a batch, and the key set."""
    spans = [span_from_json({**SPAN, "spanId": f"b7ad6b716920333{number}"}) for number in range(3)]
    with KmsClient(daemon.address) as client:
        alone = client.sign_span(TENANT, spans[0])
        batch = client.sign_spans(TENANT, spans, proofs=True)
        jwks = json.loads(client.get_public_keys(TENANT).jwks)

    def document(span: ComplianceSpan, result: SpanSignature) -> dict[str, Any]:
        return {
            "span": span_to_json(span),
            "signature": b64encode(result.signature).decode(),
            "keyId": result.key_id,
            "algorithm": result.algorithm,
            "payloadType": result.payload_type,
        }

    documents = {"alone": document(spans[0], alone)}
    for number in (0, 2):
        result = batch[number]
        assert isinstance(result, SpanSignature)
        assert result.proof is not None
        documents[f"proved {number}"] = {
            **document(spans[number], result),
            "proof": json.loads(proof_text(result.proof)),
        }
    return documents, jwks


class Auditor:
    """The auditor's script, in this process."""

    def __init__(self) -> None:
        found = importlib.util.spec_from_file_location("verify_spans", SCRIPT)
        assert found is not None
        assert found.loader is not None
        self._script = importlib.util.module_from_spec(found)
        found.loader.exec_module(self._script)

    def verdict(self, jwks: Path, document: Path) -> str:
        """Run it on two files."""
        with redirect_stdout(StringIO()) as printed:
            try:
                self._script.main(str(jwks), str(document))
            except self._script.MALFORMED:
                return "MALFORMED"
        return printed.getvalue().split(": ", 1)[1].split()[0]


def of_command(*arguments: str) -> str:
    """Return the verdict of `betrace-kms verify`; whatever it refuses to judge is malformed."""
    done = CliRunner().invoke(main, ["verify", *arguments])
    assert done.exit_code in (0, 1, 2), done.output
    return "MALFORMED" if done.exit_code == 2 else done.stdout.split()[0]


def test_documents_get_one_verdict(daemon: Process, signed: Any, tmp_path: Path) -> None:
    """Offline, by the daemon and by the auditor's script: at least 500 documents, no difference."""
    documents, jwks = signed
    key_set, file, auditor = tmp_path / "keys.json", tmp_path / "signed.json", Auditor()
    key_set.write_text(json.dumps(jwks))
    differences, seen = [], Counter[str]()
    for kind, document in documents.items():
        for what, text, expected in cases(kind, document):
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            verdicts = (
                of_command("--jwks", str(key_set), str(file)),
                of_command("--tenant", TENANT, "--addr", daemon.address, str(file)),
                auditor.verdict(key_set, file),
            )
            seen[verdicts[0]] += 1
            if len(set(verdicts)) != 1 or expected not in (None, verdicts[0]):
                differences.append((what, expected, *verdicts))
    assert [] == differences, differences
    assert seen.total() >= 500
    assert {"VALID", "BAD_SIGNATURE", "UNKNOWN_KEY", "MALFORMED"} <= seen.keys()


def test_the_verifier_for_node_agrees_on_documents(signed: Any, tmp_path: Path) -> None:
    """It was written from docs/signed-spans.md alone. Where a case names no verdict, it gives that of the script."""
    documents, jwks = signed
    found = [case for kind, document in documents.items() for case in cases(kind, document)]
    key_set, file, auditor = tmp_path / "keys.json", tmp_path / "signed.json", Auditor()
    key_set.write_text(json.dumps(jwks))
    differences = []
    verdicts = node_verifier.verdicts((json.dumps(jwks), text) for _, text, _ in found)
    for (what, text, expected), verdict in zip(found, verdicts, strict=True):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        if verdict != (expected or auditor.verdict(key_set, file)):
            differences.append((what, verdict))
    assert [] == differences


def test_the_verifier_for_node_agrees_on_key_sets(signed: Any) -> None:
    """It takes the same keys out of every set."""
    documents, jwks = signed
    document = json.dumps(documents["alone"])
    found = list(key_sets(jwks))
    verdicts = node_verifier.verdicts((text, document) for _, text, _ in found)
    expected = [(what, verdict or "MALFORMED") for what, _, verdict in found]
    assert expected == [(what, verdict) for (what, _, _), verdict in zip(found, verdicts, strict=True)]


def test_key_sets_get_one_verdict(signed: Any, tmp_path: Path) -> None:
    """The two readers of key sets take the same keys out of every set."""
    documents, jwks = signed
    key_set, file, auditor = tmp_path / "keys.json", tmp_path / "signed.json", Auditor()
    file.write_text(json.dumps(documents["alone"]))
    differences = []
    for what, text, expected in key_sets(jwks):
        key_set.write_text(text)
        verdicts = of_command("--jwks", str(key_set), str(file)), auditor.verdict(key_set, file)
        if len(set(verdicts)) != 1 or verdicts[0] != (expected or "MALFORMED"):
            differences.append((what, expected, *verdicts))
    assert [] == differences, differences


def test_two_spellings_of_the_time_show_one_reader_another_time(signed: Any, tmp_path: Path) -> None:
    """A proof with a second spelling of its time is refused: a reader might see that one."""
    documents, jwks = signed
    (tmp_path / "keys.json").write_text(json.dumps(jwks))
    document = deepcopy(documents["proved 2"])
    document["proof"] = {
        "signTime": "2031-01-01T00:00:00Z",
        **document["proof"],
        "sign_time": document["proof"]["signTime"],
    }
    (tmp_path / "signed.json").write_text(json.dumps(document))
    assert "MALFORMED" == of_command("--jwks", str(tmp_path / "keys.json"), str(tmp_path / "signed.json"))


@pytest.mark.parametrize(
    ("seconds", "nanos", "unknown"), [(-1, 10**9, b""), (1, -(10**9), b""), (0, 0, b"\x9a\x06\x01x")]
)
def test_calls_take_one_form_of_a_proof(daemon: Process, signed: Any, seconds: int, nanos: int, unknown: bytes) -> None:
    """VerifySpan and VerifySpans refuse a proof whose time has a second form, or that holds what nothing signed."""
    documents, _ = signed
    good = read_signed_span(documents["proved 2"])
    assert good.proof is not None
    other = InclusionProof.FromString(good.proof.SerializeToString() + unknown)
    other.sign_time.seconds += seconds
    other.sign_time.nanos += nanos
    with KmsClient(daemon.address) as client:
        assert client.verify_span(TENANT, good.span, good.signature, good.key_id, good.proof).valid
        with pytest.raises(InvalidRequest, match="proof"):
            client.verify_span(TENANT, good.span, good.signature, good.key_id, other)
        (refusal,) = client.verify_spans(TENANT, [SignedSpan(good.span, good.signature, good.key_id, other)])
        assert isinstance(refusal, SpanRefusal)
