"""sign, verify."""

import base64
import binascii
from pathlib import Path
from typing import Any, BinaryIO

import click
import orjson
from betrace_kms_evidence import InvalidSpan, span_from_json, span_to_json

from betrace_kms_client.cli.options import (
    as_json,
    calling,
    client_options,
    input_argument,
    output_option,
    read,
    tenant_option,
    write,
)

NOT_VALID = 1


@click.command(
    epilog="""\b
Examples:
  betrace-kms sign --tenant acme span.json --output signed.json
  betrace-kms sign --tenant acme --raw span.json > span.sig

\b
A span is JSON with the members of the canonical span:
  {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331",
   "name": "user.login", "framework": "soc2", "control": "CC6_1",
   "startTimeUnixNano": "1700000000000000000", "durationNano": "1500000",
   "result": "success", "attributes": {"user": {"stringValue": "alice"}}}
"""
)
@input_argument
@tenant_option
@output_option
@click.option("--raw", is_flag=True, help="Write the 64 bytes of the signature, not JSON.")
@click.option("--payload", is_flag=True, help="Put the canonical span into the JSON too.")
@client_options
def sign(
    source: BinaryIO, tenant_id: str, output: Path | None, raw: bool, payload: bool, addr: str, timeout: float
) -> None:
    """Sign a span; writes JSON that verify takes."""
    try:
        span = span_from_json(_object(read(source)))
        with calling(addr, timeout) as client:
            signed = client.sign_span(tenant_id, span, return_payload=payload)
        shown: dict[str, Any] = {
            "span": span_to_json(span),
            "signature": signed.signature,
            "keyId": signed.key_id,
            "algorithm": signed.algorithm,
            "payloadType": signed.payload_type,
        }
    except InvalidSpan as error:
        raise click.UsageError(str(error)) from None
    if payload:
        shown["payload"] = signed.payload
    if raw:
        write(signed.signature, output, binary=True)
    else:
        write(as_json(shown), output)


@click.command(
    epilog="""\b
Examples:
  betrace-kms verify --tenant acme signed.json
"""
)
@input_argument
@tenant_option
@client_options
def verify(source: BinaryIO, tenant_id: str, addr: str, timeout: float) -> None:
    """Verify what sign wrote. Prints VALID, UNKNOWN_KEY, BAD_SIGNATURE or KEY_REVOKED; exits with 1 unless VALID."""
    document = _object(read(source))
    try:
        span = span_from_json(_member(document, "span", dict))
        signature = base64.b64decode(_member(document, "signature", str), validate=True)
        key_id = _member(document, "keyId", str)
    except binascii.Error:
        raise click.UsageError("signature must be base64, as sign writes it") from None
    except InvalidSpan as error:
        raise click.UsageError(str(error)) from None
    with calling(addr, timeout) as client:
        verdict = client.verify_span(tenant_id, span, signature, key_id)
    click.echo(verdict.reason)
    if not verdict.valid:
        raise SystemExit(NOT_VALID)


def _object(text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"the input is not JSON: {error.msg} at line {error.lineno}") from None
    if not isinstance(document, dict):
        raise click.UsageError("the input must be one JSON object")
    return document


def _member(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise click.UsageError(f"the input has no {name!r}: give verify what sign wrote")
    return value
