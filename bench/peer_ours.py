"""Our side of `make bench-peer`: a daemon with a bearer token, and its requests, whose answers were read once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from google.protobuf.message import Message

from bench.load import Target, framed
from bench.peer_inputs import BATCH, PROOFS, TENANT, Input
from tests.daemon import spawned

_SERVICE = pb.DESCRIPTOR.services_by_name["KeyManagementService"]


_POLICY = """
[[rule]]
name = "backend"
identities = ["*"]
tenants = ["*"]
operations = ["*"]
"""
_TIME_SHARE = 0.01
"""Share by which the size of an answer may differ that holds times, whose numbers have one to five bytes."""
AUDIT = {
    "": {},
    "audit": {"KMS_AUDIT_FILE": "{folder}/audit.jsonl"},
    "audit, required": {"KMS_AUDIT_FILE": "{folder}/audit.jsonl", "KMS_AUDIT_REQUIRED": "true"},
}


@dataclass(frozen=True, slots=True)
class Ours:
    """A daemon that serves, and whom to call it as."""

    address: str
    token: str
    process_id: int
    audit: Path | None


@contextmanager
def ours(folder: Path, variant: str) -> Iterator[Ours]:
    """Run a daemon with the local provider, a token and a policy, and the audit trail that `variant` names."""
    folder.mkdir(mode=0o700)
    tokens, policy = folder / "tokens", folder / "policy.toml"
    policy.touch(0o600)
    policy.write_text(_POLICY)
    environ = {name: value.format(folder=folder) for name, value in AUDIT[variant].items()}
    trail = Path(environ["KMS_AUDIT_FILE"]) if environ else None
    environ |= {"KMS_SERVER_TOKEN_FILE": str(tokens), "KMS_POLICY_FILE": str(policy)}
    with spawned("--data-dir", f"{folder}/data", "--listen", "127.0.0.1:0", environ=environ) as process:
        process.wait_for("serving")
        yield Ours(process.address, tokens.read_text().split()[0], process.process.pid, trail)


class Maker:
    """Makes a request's body, and sends it once to see that its answer is good."""

    def __init__(self, daemon: Ours, channel: grpc.Channel, folder: Path) -> None:
        self._daemon, self._channel, self._folder = daemon, channel, folder
        self.targets: dict[str, list[Target]] = {}

    def add(self, row: str, method: str, message: Message, items: int = 1) -> Any:
        """Add a request to a row, and return its answer."""
        path = f"/{_SERVICE.full_name}/{method}"
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)  # bytes in, bytes out
        metadata = (("authorization", f"Bearer {self._daemon.token}"),)
        answer = call(message.SerializeToString(), metadata=metadata, timeout=20)
        of_row = self.targets.setdefault(row, [])
        body = self._folder / f"{row}-{len(of_row)}"
        body.write_bytes(framed(message.SerializeToString()))
        of_row.append(
            Target(
                address=self._daemon.address,
                method=path,
                body=body,
                answer_bytes=len(answer),
                process_id=self._daemon.process_id,
                items=items,
                tolerance=_TIME_SHARE if row == PROOFS else 0,
                token=self._daemon.token,
            )
        )
        return getattr(pb, _SERVICE.methods_by_name[method].output_type.name).FromString(answer)


def targets(daemon: Ours, given: Sequence[Input], folder: Path) -> Mapping[str, Sequence[Target]]:
    """Return the requests of each row, one for each input."""
    folder.mkdir()
    with grpc.insecure_channel(daemon.address) as channel:
        maker = Maker(daemon, channel, folder)
        for each in given:
            _spans(maker, each)
            _payloads(maker, each)
        return maker.targets


def _spans(maker: Maker, given: Input) -> None:
    first = given.spans[0]
    signed = maker.add("SignSpan", "SignSpan", pb.SignSpanRequest(tenant_id=TENANT, span=first))
    verify = pb.VerifySpanRequest(tenant_id=TENANT, span=first, signature=signed.signature, key_id=signed.key_id)
    assert maker.add("VerifySpan", "VerifySpan", verify).valid
    batch = pb.SignSpansRequest(tenant_id=TENANT, spans=given.spans)
    results = maker.add("SignSpans", "SignSpans", batch, BATCH).results
    verdicts = maker.add("VerifySpans", "VerifySpans", _signed(given, results), BATCH).results
    assert [True] * len(given.spans) == [each.valid for each in verdicts]
    batch.mode = pb.BATCH_PROOF
    proved = maker.add(PROOFS, "SignSpans", batch, BATCH).results
    verdicts = maker.add("VerifySpans, proofs", "VerifySpans", _signed(given, proved), BATCH).results
    assert [True] * len(given.spans) == [each.valid for each in verdicts]


def _signed(given: Input, results: Sequence[Any]) -> pb.VerifySpansRequest:
    signed = [
        pb.SignedSpan(
            span=span,
            signature=result.signature,
            key_id=result.key_id,
            proof=result.proof if result.HasField("proof") else None,
        )
        for span, result in zip(given.spans, results, strict=True)
    ]
    return pb.VerifySpansRequest(tenant_id=TENANT, spans=signed)


def _payloads(maker: Maker, given: Input) -> None:
    sealed = maker.add("Encrypt", "Encrypt", pb.EncryptRequest(tenant_id=TENANT, plaintext=given.payload))
    opened = maker.add(
        "Decrypt", "Decrypt", pb.DecryptRequest(tenant_id=TENANT, ciphertext_blob=sealed.ciphertext_blob)
    )
    assert given.payload == opened.plaintext
    items = [pb.EncryptBatchItem(plaintext=item) for item in given.items]
    batch = maker.add("EncryptBatch", "EncryptBatch", pb.EncryptBatchRequest(tenant_id=TENANT, items=items), BATCH)
    blobs = [pb.DecryptBatchItem(ciphertext_blob=result.ciphertext_blob) for result in batch.results]
    plain = maker.add("DecryptBatch", "DecryptBatch", pb.DecryptBatchRequest(tenant_id=TENANT, items=blobs), BATCH)
    assert given.items == [result.plaintext for result in plain.results]
    for row, fresh in (("GenerateDataKey, cached", False), ("GenerateDataKey, fresh", True)):
        request = pb.GenerateDataKeyRequest(tenant_id=TENANT, key_spec=pb.AES_256, fresh=fresh)
        assert 32 == len(maker.add(row, "GenerateDataKey", request).plaintext)
