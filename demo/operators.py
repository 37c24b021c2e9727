"""Steps of those who operate the daemon: what they see, and what they do to keys."""

import json
import urllib.request

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import FailedPrecondition, KmsClient

from demo.stage import Stage, StepFailed, check


def show_page(stage: Stage) -> None:
    """Ask for the page that shows the daemon live, and for what is on it."""
    with urllib.request.urlopen(stage.page, timeout=20) as answer:
        check("text/html" in answer.headers["Content-Type"], "there is no page")
        check("default-src 'none'" in answer.headers["Content-Security-Policy"], "the page may load what it likes")
    stage.backend.after(64)
    status = stage.status()
    cost = status["cost"]
    stage.say(f"{stage.page} shows the daemon live")
    stage.say(f"hit rate {status['hit_rate']:.1%}; warm keys last {status['seconds_until_degraded'] / 60:.0f} minutes")
    stage.say(
        f"a month at the rate since the start: ${cost['with_cache_dollars']:,.2f} with the cache,"
        f" ${cost['without_cache_dollars']:,.2f} without"
    )


def rotate(stage: Stage) -> None:
    """Give the tenant a new signing key; the old signature stays valid."""
    check(stage.command("rotate --tenant acme") == "rotated", "the key was not rotated")
    stage.command("sign --tenant acme span.json --output signed-later.json")
    old, new = (
        json.loads((stage.folder / name).read_bytes())["keyId"] for name in ("signed.json", "signed-later.json")
    )
    check(old != new, "the old key still signs")
    check(stage.command("verify --tenant acme signed.json") == "VALID", "the old signature is not valid any more")


def revoke(stage: Stage) -> None:
    """Revoke the old key: its signatures do not count any more, those of the new one do."""
    old = json.loads((stage.folder / "signed.json").read_bytes())["keyId"]
    stage.command(f"revoke --tenant acme --key-id {old} --yes")
    verdict = stage.command("verify --tenant acme signed.json", status=1)
    check(verdict == "KEY_REVOKED", "the signature of the revoked key still counts")
    check(stage.command("verify --tenant acme signed-later.json") == "VALID", "the new key does not count")


def shred(stage: Stage) -> None:
    """Ask for a tenant's shredding: what was sealed for it is refused at once. Cancel it in time."""
    with (
        stage.daemon_in("branch-keys", KMS_ENCRYPTION_MODE="branch-key") as daemon,
        KmsClient(daemon.address) as kms,
    ):
        stage.say("A second daemon seals under branch keys, which can be destroyed one tenant at a time.")
        sealed = kms.encrypt("acme", b"alice@example.com").ciphertext_blob
        stage.command("shred acme --yes", daemon=daemon, data="branch-keys")
        try:
            kms.decrypt("acme", sealed)
        except FailedPrecondition as refused:
            check(refused.reason == "TENANT_PENDING_SHRED", f"the call was refused for {refused.reason}")
            stage.say(f"Decrypt: {refused.reason}")
        else:
            raise StepFailed("the tenant's message still opens")
        kms.sign_span("acme", ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login"))
        stage.say("SignSpan goes on: evidence outlives the data")
        stage.command("shred acme --cancel", daemon=daemon, data="branch-keys")
        check(kms.decrypt("acme", sealed).plaintext == b"alice@example.com", "the message does not open any more")


def audit(stage: Stage) -> None:
    """Verify the hash chain over every call of this tour."""
    stage.command("audit verify audit.log")


def stop(stage: Stage) -> None:
    """Stop the daemon: it answers what it took, and exits with 0."""
    counts = stage.backend.counts
    stage.backend.end()
    check(not counts.failed, f"{counts.failed} requests of the backend failed: {counts.problem}")
    stage.say(f"The backend had {counts.served:,} requests, 0 failed")
    stage.daemon.process.terminate()
    code = stage.daemon.process.wait(timeout=30)
    check(code == 0, f"the daemon exited with {code}")
    stage.say("SIGTERM: the daemon drained and exited with 0")
