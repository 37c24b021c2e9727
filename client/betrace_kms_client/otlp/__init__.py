"""Signed spans in OTLP/JSON trace files: what the OpenTelemetry collector's file exporter writes.

A file is one document, or JSON lines: a document a line. The module `mapping` says what of a span is signed; see also
docs/otlp-files.md.
"""

from betrace_kms_client.otlp.encodings import DamagedInput, InvalidInput, decoded
from betrace_kms_client.otlp.files import InvalidLine, Line, grouped, lines_of, read_first
from betrace_kms_client.otlp.mapping import span_from_otlp
from betrace_kms_client.otlp.signature import attach_failure, attach_signature, signature_of
from betrace_kms_client.otlp.signing import Unsigned, sign_lines
from betrace_kms_client.otlp.verifying import Finding, judge_offline, verify_lines

__all__ = [
    "DamagedInput",
    "Finding",
    "InvalidInput",
    "InvalidLine",
    "Line",
    "Unsigned",
    "attach_failure",
    "attach_signature",
    "decoded",
    "grouped",
    "judge_offline",
    "lines_of",
    "read_first",
    "sign_lines",
    "signature_of",
    "span_from_otlp",
    "verify_lines",
]
