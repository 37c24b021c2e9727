"""Steps of those who call: evidence that nobody can change, messages that any official SDK opens, and warm calls."""

import json
import time

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import InvalidRequest

from demo.stage import Stage, StepFailed, check

SPAN = {
    "traceId": "0af7651916cd43dd8448eb211c80319c",
    "spanId": "b7ad6b7169203331",
    "name": "user.login",
    "framework": "soc2",
    "attributes": {"user": {"stringValue": "alice"}},
}
_WARM_CALLS = 500


def sign(stage: Stage) -> None:
    """Sign a span under a key that the tenant gets by it."""
    (stage.folder / "span.json").write_text(json.dumps(SPAN))
    stage.command("sign --tenant acme span.json --output signed.json")
    signed = json.loads((stage.folder / "signed.json").read_bytes())
    stage.say(f"{signed['algorithm']} signature {signed['signature'][:32]}... of key {signed['keyId']}")


def tamper(stage: Stage) -> None:
    """Change one attribute of the signed span."""
    text = (stage.folder / "signed.json").read_text()
    changed = json.loads(text.replace("alice", "mallory"))
    changed.pop("payload", None)
    (stage.folder / "tampered.json").write_text(json.dumps(changed))
    stage.say('"alice" is now "mallory" in tampered.json')
    check(
        stage.command("verify --tenant acme tampered.json", status=1) == "BAD_SIGNATURE", "the change was not noticed"
    )


def verify(stage: Stage) -> None:
    """Verify the signed span by the daemon, and offline as an auditor does."""
    check(stage.command("verify --tenant acme signed.json") == "VALID", "the daemon does not know its own signature")
    stage.command("keys --tenant acme --jwks --output keys.json")
    offline = stage.program("docs/auditor/verify_spans.py keys.json signed.json")
    check(offline == "1: VALID", "the auditor's script does not accept the signature")
    stage.say("The script is one file, and needs neither daemon nor network.")


def encrypt(stage: Stage) -> None:
    """Seal a field, and let another tenant try to open it."""
    (stage.folder / "email.txt").write_bytes(b"alice@example.com")
    stage.command("encrypt --tenant acme --context field=email email.txt --output email.sealed")
    message = (stage.folder / "email.sealed").read_bytes()
    stage.say(f"{len(message)} bytes, begins {message[:3].hex(' ')}: an AWS Encryption SDK message")
    try:
        stage.kms.decrypt("globex", message, {"field": "email"})
    except InvalidRequest as refused:
        stage.say(f"tenant globex gets: {refused.message}")
    else:
        raise StepFailed("another tenant opened the message")


def open_with_official_sdk(stage: Stage) -> None:
    """Open that message with AWS's own SDK and the KMS key, without anything of ours."""
    environ = {"AWS_ENDPOINT_URL_KMS": stage.aws.url}
    opened = stage.program(f"demo/open_with_sdk.py {stage.master_key} email.sealed", environ)
    check(opened == "alice@example.com", "the official SDK opened something else")


def call_warm(stage: Stage) -> None:
    """Make warm calls, and count what KMS is asked meanwhile."""
    span = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
    asked = stage.aws.calls.copy()
    began = time.perf_counter()
    for _ in range(_WARM_CALLS):
        stage.kms.sign_span("acme", span)
    took = time.perf_counter() - began
    stage.say(f"{_WARM_CALLS} calls of SignSpan in {took:.2f} s, one after the other")
    new = {action: number for action, number in (stage.aws.calls - asked).items() if action != "DescribeKey"}
    check(not new, f"warm calls asked KMS: {new}")
    stage.say("KMS was asked for no key meanwhile")
