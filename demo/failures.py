"""Steps in which AWS fails: one Region, and then all of KMS. The backend must not notice either."""

import time
import urllib.error

from betrace_kms_client import KmsClientError, Unavailable

from demo.stage import REGION, REPLICA_REGION, Stage, StepFailed, check

_REQUESTS = 40
"""Requests of the backend that must be over before an outage counts as survived."""
_RECOVERY_SECONDS = 20.0


def fail_over(stage: Stage) -> None:
    """Lose the first Region: a tenant that has no key yet gets one from the second."""
    before = stage.backend.counts
    stage.near.always("drop")
    stage.say(f"KMS in {REGION} drops every connection")
    try:
        stage.kms.encrypt("newcomer", b"payload", timeout=20)
        region = stage.status()["kms"]["region"]
        check(region == REPLICA_REGION, f"the new tenant's key came from {region}")
        stage.say(f"a new tenant got its key from {region}")
        _served_since(stage, before.failed)
    finally:
        stage.near.always("pass")
    _until_region(stage, REGION)
    stage.say(f"KMS in {REGION} is back, and is asked again")


def lose_kms(stage: Stage) -> None:
    """Lose KMS everywhere: warm calls go on, a tenant without a key is told to come back."""
    before = stage.backend.counts
    stage.near.always("drop")
    stage.away.always("drop")
    stage.say("KMS drops every connection, in both Regions")
    try:
        _refused(stage)
        _until_not_ready(stage)
        _served_since(stage, before.failed)
        minutes = (stage.status()["seconds_until_degraded"] or 0) / 60
        stage.say(f"keys that are warm last {minutes:.0f} more minutes")
    finally:
        stage.near.always("pass")
        stage.away.always("pass")
    _until_region(stage, REGION)
    stage.say("KMS is back: new tenants are served again")


def _refused(stage: Stage) -> None:
    try:
        stage.kms.encrypt("latecomer", b"payload", timeout=20)
    except Unavailable as refused:
        check(refused.reason == "KMS_UNREACHABLE", f"the new tenant was refused for {refused.reason}")
        stage.say(f"a new tenant gets {refused.reason}, and when to try again")
    else:
        raise StepFailed("a key came from a KMS that does not answer")


def _until_not_ready(stage: Stage) -> None:
    """Wait until readiness says that KMS is away."""
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while time.monotonic() < deadline:
        try:
            stage.get("/q/health/ready")
        except urllib.error.HTTPError as down:
            down.close()
            stage.say(f"/q/health/ready answers {down.code}, so that an alert can fire")
            return
        time.sleep(0.1)
    raise StepFailed("/q/health/ready did not report the outage")


def _served_since(stage: Stage, failed: int) -> None:
    """Let the backend go on for a while, and fail unless each of its requests was served."""
    before = stage.backend.counts
    counts = stage.backend.after(_REQUESTS)
    check(counts.failed == failed, f"requests of the backend failed: {counts.problem}")
    check(counts.served > before.served, "the backend stands still")
    stage.say(f"meanwhile {counts.served - before.served} requests of the backend, 0 failed")


def _until_region(stage: Stage, region: str) -> None:
    """Make calls of new tenants until a Region serves one."""
    deadline, number = time.monotonic() + _RECOVERY_SECONDS, 0
    while time.monotonic() < deadline:
        number += 1
        try:
            stage.kms.encrypt(f"returning-{region}-{number}-{time.monotonic_ns()}", b"payload", timeout=20)
        except KmsClientError:
            pass
        else:
            if stage.status()["kms"]["region"] == region:
                return
        time.sleep(0.3)
    raise StepFailed(f"no new tenant was served by {region} within {_RECOVERY_SECONDS:.0f} s")
