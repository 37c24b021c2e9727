"""Quotas of calls over a real connection."""

from pathlib import Path

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, PermissionDenied, ResourceExhausted

from tests.daemon import Process, spawned

SPANS = [ComplianceSpan(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), name="n") for number in range(1, 9)]
HOUR = 3600.0
POLICY = '[[rule]]\nname = "one"\nidentities = ["app"]\ntenants = ["acme", "other"]\noperations = ["*"]\n'


def serving(daemon: Process, folder: Path) -> AsyncKmsClient:
    daemon.wait_for("serving")
    return AsyncKmsClient(f"unix:{folder}/kms.sock")


async def test_tenant_past_its_quota_is_refused(tmp_path: Path) -> None:
    """Warm calls count, batches count their items, refused callers do not; each refusal says when to come again."""
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "policy.toml").chmod(0o600)
    values = {
        "kms.data-dir": f"{tmp_path}/data",
        "kms.server.listen": f"unix:{tmp_path}/kms.sock;identity=app",
        "kms.policy.file": f"{tmp_path}/policy.toml",
        "kms.quota.tenant-per-second": "1",
        "kms.quota.tenant-burst": "10",
    }
    with spawned(*(part for name, value in values.items() for part in ("--set", f"{name}={value}"))) as daemon:
        async with serving(daemon, tmp_path) as client:
            for _ in range(20):
                with pytest.raises(PermissionDenied):
                    await client.encrypt("forbidden", b"payload")
            await client.sign_spans("acme", SPANS)
            with pytest.raises(ResourceExhausted) as refused:
                await client.sign_spans("acme", SPANS)
            assert "QUOTA_EXCEEDED" == refused.value.reason
            assert refused.value.retry_after is not None
            assert 3 < refused.value.retry_after <= 6
            for _ in range(2):
                await client.get_public_keys("acme")
            await client.encrypt("other", b"payload")
        failures = 'kms_rpc_failures_total{reason="%s"}'
        found = daemon.metrics()
        assert (1, 20) == (found[failures % "QUOTA_EXCEEDED"], found[failures % "CALLER_NOT_ALLOWED"])
