"""examples/node/verify-spans.mjs judges the vectors and the worked example of docs/signed-spans.md as they say."""

import json
import re
import subprocess
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.interop import node_verifier
from tests.interop.tools import ROOT, tool

VECTORS = ROOT / "tests" / "vectors" / "spans"
FORMAT = (ROOT / "docs" / "signed-spans.md").read_text("utf-8")


def example(name: str) -> str:
    """Return a block of the worked example."""
    (found,) = re.findall(rf"^```\w+ {name}\n(.*?)^```$", FORMAT, re.MULTILINE | re.DOTALL)
    return str(found)


def base64(digits: str) -> str:
    return b64encode(bytes.fromhex(digits)).decode()


def key_set(vector: Mapping[str, Any], **change: str) -> str:
    """Return the key set of a vector."""
    x = urlsafe_b64encode(bytes.fromhex(vector["public_key"])).decode().rstrip("=")
    key = {"kty": "OKP", "crv": "Ed25519", "kid": vector["key_id"], "x": x, **change}
    return json.dumps({"keys": [key], "tenant_id": vector["tenant_id"]})


def vectors() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the key set and the document of each signed vector."""
    for name in ("spans", "maximal"):
        for vector in json.loads((VECTORS / f"{name}.json").read_text("utf-8"))["vectors"]:
            document = {"span": vector["span"], "signature": base64(vector["signature"]), "keyId": vector["key_id"]}
            yield key_set(vector), document
    for vector in json.loads((VECTORS / "trees.json").read_text("utf-8"))["vectors"]:
        for proof in vector["proofs"]:
            span = json.loads(vector["payloads"][proof["leaf_index"]])
            del span["tenantId"], span["keyId"]
            yield (
                key_set(vector),
                {
                    "span": span,
                    "signature": base64(vector["signature"]),
                    "keyId": vector["key_id"],
                    "proof": {
                        "leafIndex": str(proof["leaf_index"]),
                        "treeSize": str(len(vector["payloads"])),
                        "rootHash": base64(vector["root_hash"]),
                        "hashes": list(map(base64, proof["hashes"])),
                        "signTime": vector["sign_time"],
                    },
                },
            )


def judged(pairs: list[tuple[str, dict[str, Any]]]) -> set[str]:
    """Return the verdicts that some of these pairs got."""
    return set(node_verifier.verdicts((keys, json.dumps(document)) for keys, document in pairs))


def test_every_vector_is_valid() -> None:
    """All types of value, and every proof of every tree."""
    found = list(vectors())
    assert len(found) > 40
    assert {"VALID"} == judged(found)


@pytest.mark.parametrize(
    ("verdict", "keys", "span"),
    [
        ("BAD_SIGNATURE", {}, {"spanId": "0123456789abcdef"}),
        ("KEY_REVOKED", {"status": "REVOKED"}, {}),
        ("UNKNOWN_KEY", {"kid": "another"}, {}),
        ("MALFORMED", {}, {"more": ""}),
    ],
)
def test_no_changed_vector_is_valid(verdict: str, keys: Mapping[str, str], span: Mapping[str, str]) -> None:
    """One change to the span, or to its key, gives every vector the same verdict."""

    def changed(text: str) -> str:
        found = json.loads(text)
        found["keys"][0] |= keys
        return json.dumps(found)

    pairs = [(changed(text), {**document, "span": document["span"] | span}) for text, document in vectors()]
    assert {verdict} == judged(pairs)


def run(folder: Path, keys: str, file: str) -> "subprocess.CompletedProcess[str]":
    """Run it as a user does."""
    (folder / "keys.json").write_text(keys, "utf-8")
    (folder / "signed.json").write_text(file, "utf-8")
    return subprocess.run(
        [tool("node"), str(node_verifier.SCRIPT), "keys.json", "signed.json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_command_judges_the_worked_example(tmp_path: Path) -> None:
    """One document, or one on each line; the exit status says whether all are valid."""
    keys, signed, proved = map(example, ("keys.json", "signed.json", "proved.json"))
    for document in (signed, proved):
        done = run(tmp_path, keys, document)
        assert (0, "1: VALID\n") == (done.returncode, done.stdout)
    lines = [json.dumps(json.loads(each), ensure_ascii=False) for each in (signed, proved)]
    done = run(tmp_path, keys, "\n".join([*lines, "{", ""]).replace("2024-01-02", "2024-01-03"))
    assert (1, ["VALID", "BAD_SIGNATURE", "MALFORMED"]) == (
        done.returncode,
        [line.split(": ")[1] for line in done.stdout.splitlines()],
    )
    done = run(tmp_path, "{}", signed)
    assert (2, "no tenant_id\n") == (done.returncode, done.stderr)
