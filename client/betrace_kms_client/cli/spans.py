"""sign, verify."""

from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
import orjson
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_evidence import (
    InvalidDocument,
    InvalidKeySet,
    InvalidSpan,
    SpanVerifier,
    read_jwks,
    read_signed_span,
    span_from_json,
    span_to_json,
    strict_json,
)

from betrace_kms_client.cli.options import (
    as_json,
    calling,
    client_options,
    input_argument,
    output_option,
    tenant_option,
)
from betrace_kms_client.cli.outputs import write
from betrace_kms_client.cli.streams import Refused, read_whole
from betrace_kms_client.cli.traces import sign_traces, verify_traces
from betrace_kms_client.errors import InvalidRequest
from betrace_kms_client.otlp import InvalidInput, decoded, judge_offline, read_first
from betrace_kms_client.otlp.files import MAX_LEVELS, nesting, too_deep
from betrace_kms_client.otlp.signature import proof_text
from betrace_kms_client.otlp.verifying import Judge
from betrace_kms_client.results import SignedSpan, SpanRefusal, SpanSignature
from betrace_kms_client.sync_client import KmsClient

NOT_ALL = 1
T = TypeVar("T")


@click.command(
    epilog="""\b
Examples:
  betrace-kms sign --tenant acme span.json --output signed.json
  betrace-kms sign --tenant acme --raw span.json > span.sig
  betrace-kms sign --tenant acme --proofs traces.jsonl --output traces.signed.jsonl

\b
A span is JSON with the members of the canonical span:
  {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331",
   "name": "user.login", "framework": "soc2", "control": "CC6_1",
   "startTimeUnixNano": "1700000000000000000", "durationNano": "1500000",
   "result": "success", "attributes": {"user": {"stringValue": "alice"}}}

\b
A trace file is OTLP/JSON, one document or JSON lines, as the OpenTelemetry
collector's file exporter writes it. It is written again with span.signature
attributes; the exit code is 1 if a span could not be signed.
"""
)
@input_argument
@tenant_option
@output_option
@click.option("--proofs", is_flag=True, help="One signature for a batch, and for each span a proof that it is in it.")
@click.option("--raw", is_flag=True, help="Write the 64 bytes of the signature, not JSON.")
@click.option("--payload", is_flag=True, help="Put the canonical span into the JSON too.")
@client_options
def sign(
    source: BinaryIO,
    tenant_id: str,
    output: Path | None,
    proofs: bool,
    raw: bool,
    payload: bool,
    addr: str,
    timeout: float,
) -> None:
    """Sign a span, or every span of a trace file; writes what verify takes."""
    source, head, is_traces = _opened(source)
    if is_traces:
        if raw or payload:
            if not b"".join(head).strip():
                raise click.UsageError("the input is empty: give a span")
            raise click.UsageError("--raw and --payload are for a single span, and the input is a trace file")
        with calling(addr, timeout) as client:

            def sign_batch(spans: Sequence[ComplianceSpan]) -> Sequence[SpanSignature | SpanRefusal]:
                return client.sign_spans(tenant_id, spans, proofs=proofs)

            complete = _read(lambda: sign_traces(head, source, output, sign_batch))
        if not complete:
            raise SystemExit(NOT_ALL)
        return
    if proofs and raw:
        raise click.UsageError("--raw writes no proof: leave --raw or --proofs out")
    try:
        span = span_from_json(_object(head))
        with calling(addr, timeout) as client:
            signed = _signed(client, tenant_id, span, proofs=proofs, payload=payload)
        shown: dict[str, Any] = {
            "span": span_to_json(span),
            "signature": signed.signature,
            "keyId": signed.key_id,
            "algorithm": signed.algorithm,
            "payloadType": signed.payload_type,
        }
    except InvalidSpan as error:
        raise click.UsageError(str(error)) from None
    if signed.proof is not None:
        shown["proof"] = orjson.loads(proof_text(signed.proof))
    if payload:
        shown["payload"] = signed.payload
    if raw:
        write(signed.signature, output, binary=True)
    else:
        write(as_json(shown), output)


def _signed(client: KmsClient, tenant_id: str, span: ComplianceSpan, *, proofs: bool, payload: bool) -> SpanSignature:
    if not proofs:
        return client.sign_span(tenant_id, span, return_payload=payload)
    (result,) = client.sign_spans(tenant_id, [span], proofs=True, return_payload=payload)
    if isinstance(result, SpanRefusal):
        raise InvalidRequest(result.message)
    return result


@click.command(
    epilog="""\b
Examples:
  betrace-kms verify --tenant acme signed.json
  betrace-kms verify --jwks acme.jwks.json traces.signed.jsonl      # needs no daemon
"""
)
@input_argument
@click.option("--tenant", "tenant_id", default="", help="Whose key it is. A key set says so itself.")
@click.option("--jwks", type=click.File("rb"), help="Key set of `keys --jwks`: verify with it, without the daemon.")
@client_options
def verify(source: BinaryIO, tenant_id: str, jwks: BinaryIO | None, addr: str, timeout: float) -> None:
    """Verify what sign wrote: VALID, UNKNOWN_KEY, BAD_SIGNATURE or KEY_REVOKED; exits with 1 unless VALID.

    In a trace file a span may also have MISSING_SIGNATURE, or be REFUSED because it is not such as sign writes; spans
    that are not VALID are listed, and a summary follows.
    """
    if jwks is not None:
        try:
            verifier = SpanVerifier(read_jwks(read_whole(jwks), tenant_id))
        except InvalidKeySet as error:
            raise click.UsageError(str(error)) from None
        valid = _verified(source, judge_offline(verifier))
    elif not tenant_id:
        raise click.UsageError("give --tenant to ask the daemon, or --jwks to do without it")
    else:
        with calling(addr, timeout) as client:
            valid = _verified(source, lambda spans: client.verify_spans(tenant_id, spans))
    if not valid:
        raise SystemExit(NOT_ALL)


def _verified(source: BinaryIO, judge: Judge) -> bool:
    source, head, is_traces = _opened(source)
    if is_traces:
        return _read(lambda: verify_traces(head, source, judge))
    (verdict,) = judge([_signed_span(_object(head))])
    if isinstance(verdict, SpanRefusal):
        raise click.UsageError(verdict.message)
    click.echo(verdict.reason)
    return verdict.valid


def _signed_span(document: dict[str, Any]) -> SignedSpan:
    try:
        signed = read_signed_span(document)
    except (InvalidDocument, InvalidSpan) as error:
        raise click.UsageError(f"{error}; give verify what sign wrote") from None
    return SignedSpan(signed.span, signed.signature, signed.key_id, signed.proof)


def _opened(source: BinaryIO) -> tuple[BinaryIO, list[bytes], bool]:
    """Return the input as text, what was read to see what it is, and whether it is a trace file."""

    def read() -> tuple[BinaryIO, list[bytes], bool]:
        stream = decoded(source)
        return stream, *read_first(stream)

    return _read(read)


def _read(reading: Callable[[], T]) -> T:
    try:
        return reading()
    except InvalidInput as error:
        raise Refused(str(error)) from None


def _object(pieces: Sequence[bytes]) -> dict[str, Any]:
    """Return the one document that the input holds; what follows it would pass unseen."""
    text = b"".join(pieces).removeprefix(BOM_UTF8)
    if nesting(text) > MAX_LEVELS:
        raise Refused(too_deep(text))
    try:
        document = strict_json(text)
    except ValueError as error:
        if _goes_on(text):
            raise click.UsageError(
                "the input goes on after its first document: give one span, or a trace file"
            ) from None
        raise click.UsageError(f"the input is not JSON as evidence has it: {error}") from None
    if not isinstance(document, dict):
        raise click.UsageError("the input must be one JSON object")
    return document


def _goes_on(text: bytes) -> bool:
    first, _, rest = text.lstrip().partition(b"\n")
    try:
        strict_json(first)
    except ValueError:
        return False
    return bool(rest.strip())
