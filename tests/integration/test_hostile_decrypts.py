"""A caller cannot make the daemon hold its junk: hostile Decrypts against a real daemon."""

import os
import re
from collections.abc import Callable
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


def with_many_pairs(message: bytes) -> bytes:
    """Give a message a context of 651 random pairs, as its header may have in 4 KiB."""
    names = {os.urandom(1).hex() + os.urandom(1).hex() for _ in range(651)}
    pairs = b"".join(len(name).to_bytes(2, "big") + name.encode() + b"\0\0" for name in names)
    context = len(names).to_bytes(2, "big") + pairs
    size = int.from_bytes(message[35:37], "big")
    return message[:35] + len(context).to_bytes(2, "big") + context + message[37 + size :]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "1 MiB headers": lambda message: with_junk_keys(message, 9, 60_000),
    "128 KiB headers": lambda message: with_junk_keys(message, 9, 7_000),
    "many pairs": with_many_pairs,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_refused_decrypts_leave_nothing_behind(tmp_path: Path, kind: str) -> None:
    """450 hostile messages, all different: memory grows by less than 10 MiB, and warm keys stay.

    From the first call on it is 6 to 9.6 MiB, of which a part is what gRPC and the allocator keep: hence the margin.
    """
    made = HOSTILE[kind]
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{tmp_path}/kms.sock") as daemon:
        daemon.wait_for("serving")
        with KmsClient(f"unix:{tmp_path}/kms.sock") as client:
            good = client.encrypt("acme", b"hello").ciphertext_blob
            before = resident(daemon)
            for _ in range(CALLS):
                refused(client, made(good))
            for _ in range(CALLS):
                refused(client, os.urandom(6_000))
            assert resident(daemon) - before < 12 * MIB
            assert b"hello" == client.decrypt("acme", good).plaintext


def refused(client: KmsClient, blob: bytes) -> None:
    """Let a blob be refused."""
    with pytest.raises(KmsClientError) as error:
        client.decrypt("acme", blob)
    assert "CIPHERTEXT_DOES_NOT_OPEN" == error.value.reason
