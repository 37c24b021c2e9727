"""OpenBao's side of `make bench-peer`: the requests of its transit engine that do the same work, answered once.

A span is signed as the bytes that we sign. That a caller must make those bytes first costs OpenBao nothing here.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from betrace_kms_evidence import PAYLOAD_TYPE, canonical_span, pre_authentication_encoding

from bench.load import Target
from bench.openbao import ENCRYPTION, SIGNING, OpenBao
from bench.peer_inputs import PROOFS, TENANT, Input

_KEY_ID = "0123456789abcdef" * 2


class Maker:
    """Makes a request's body, and sends it once to see that its answer is good."""

    def __init__(self, server: OpenBao, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.targets: dict[str, list[Target]] = {}

    def add(self, rows: Sequence[str], path: str, body: Mapping[str, Any]) -> Any:
        """Add a request to rows, and return its answer."""
        answer, size = self._server.call(path, body)
        number = len(self.targets.get(rows[0], ()))
        file = self._folder / f"{rows[0]}-{number}"
        file.write_text(json.dumps(body, separators=(",", ":")))
        target = Target(
            address=self._server.url.removeprefix("http://"),
            method=f"/v1/{path}",
            body=file,
            answer_bytes=size,
            process_id=self._server.process_id,
            items=len(body.get("batch_input", [0])),
            http1=("content-type: application/json", f"X-Vault-Token: {self._server.token}"),
        )
        for row in rows:
            self.targets.setdefault(row, []).append(target)
        return answer


def targets(server: OpenBao, given: Sequence[Input], folder: Path) -> Mapping[str, Sequence[Target]]:
    """Return the requests of each row, one for each input."""
    folder.mkdir()
    maker = Maker(server, folder)
    for each in given:
        _spans(maker, each)
        _payloads(maker, each)
    return maker.targets


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def _spans(maker: Maker, given: Input) -> None:
    messages = [
        _text(pre_authentication_encoding(PAYLOAD_TYPE, canonical_span(TENANT, _KEY_ID, span))) for span in given.spans
    ]
    signature = maker.add(("SignSpan",), f"transit/sign/{SIGNING}", {"input": messages[0]})["signature"]
    verify = {"input": messages[0], "signature": signature}
    assert maker.add(("VerifySpan",), f"transit/verify/{SIGNING}", verify)["valid"]
    batch = {"batch_input": [{"input": message} for message in messages]}
    results = maker.add(("SignSpans", PROOFS), f"transit/sign/{SIGNING}", batch)["batch_results"]
    signed = [
        {"input": message, "signature": each["signature"]} for message, each in zip(messages, results, strict=True)
    ]
    rows = ("VerifySpans", "VerifySpans, proofs")
    verdicts = maker.add(rows, f"transit/verify/{SIGNING}", {"batch_input": signed})["batch_results"]
    assert [True] * len(given.spans) == [each["valid"] for each in verdicts]


def _payloads(maker: Maker, given: Input) -> None:
    encrypt, decrypt = f"transit/encrypt/{ENCRYPTION}", f"transit/decrypt/{ENCRYPTION}"
    sealed = maker.add(("Encrypt",), encrypt, {"plaintext": _text(given.payload)})["ciphertext"]
    assert given.payload == b64decode(maker.add(("Decrypt",), decrypt, {"ciphertext": sealed})["plaintext"])
    batch = {"batch_input": [{"plaintext": _text(item)} for item in given.items]}
    results = maker.add(("EncryptBatch",), encrypt, batch)["batch_results"]
    blobs = {"batch_input": [{"ciphertext": each["ciphertext"]} for each in results]}
    opened = maker.add(("DecryptBatch",), decrypt, blobs)["batch_results"]
    assert given.items == [b64decode(each["plaintext"]) for each in opened]
    rows = ("GenerateDataKey, cached", "GenerateDataKey, fresh")
    assert 32 == len(b64decode(maker.add(rows, f"transit/datakey/plaintext/{ENCRYPTION}", {})["plaintext"]))
