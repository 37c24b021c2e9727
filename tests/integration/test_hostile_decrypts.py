"""A caller cannot make the daemon hold its junk: hostile Decrypts against a real daemon."""

import os
import re
from pathlib import Path

import pytest
from betrace_kms_client import KmsClient, KmsClientError

from tests.contract.test_cache_trust import with_junk_keys
from tests.daemon import Process, spawned

CALLS = 450
MIB = 1024


def resident(daemon: Process) -> int:
    """Return the resident memory of a daemon in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("junk", [60_000, 7_000], ids=["1 MiB headers", "128 KiB headers"])
def test_refused_decrypts_leave_nothing_behind(tmp_path: Path, junk: int) -> None:
    """450 messages with nine junk keys each, all different: memory grows by less than 10 MiB, and warm keys stay."""
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{tmp_path}/kms.sock") as daemon:
        daemon.wait_for("serving")
        with KmsClient(f"unix:{tmp_path}/kms.sock") as client:
            good = client.encrypt("acme", b"hello").ciphertext_blob
            for _ in range(20):  # so that buffers of gRPC and of the allocator have their size
                refused(client, with_junk_keys(good, 9, junk))
            before = resident(daemon)
            for _ in range(CALLS):
                refused(client, with_junk_keys(good, 9, junk))
            for _ in range(CALLS):
                refused(client, os.urandom(6_000))
            assert resident(daemon) - before < 10 * MIB
            assert b"hello" == client.decrypt("acme", good).plaintext


def refused(client: KmsClient, blob: bytes) -> None:
    """Let a blob be refused."""
    with pytest.raises(KmsClientError) as error:
        client.decrypt("acme", blob)
    assert "CIPHERTEXT_DOES_NOT_OPEN" == error.value.reason
