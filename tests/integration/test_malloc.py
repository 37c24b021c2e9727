"""What large messages cost in page faults: memory that was given back to the kernel must be zeroed again."""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from betrace_kms_client import KmsClient

from tests.daemon import spawned

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc: its malloc is not tuned"
)
PAYLOAD = os.urandom(1024 * 1024)
CALLS = 20
PAGES = len(PAYLOAD) // os.sysconf("SC_PAGESIZE")


def minor_faults(process_id: int) -> int:
    """Return how many pages the kernel gave a process so far without reading a disk (proc(5), minflt)."""
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.parametrize(
    ("environ", "keeps"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "1"}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_large_messages_use_the_same_memory_again(tmp_path: Path, environ: Mapping[str, str], keeps: bool) -> None:
    """A call takes no new page, unless an operator's variable gives memory back at once."""
    with spawned("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", environ=environ) as daemon:
        daemon.wait_for("serving")
        with KmsClient(daemon.address) as client:

            def call() -> None:
                sealed = client.encrypt("acme", PAYLOAD)
                assert PAYLOAD == client.decrypt("acme", sealed.ciphertext_blob).plaintext

            for _ in range(5):
                call()
            before = minor_faults(daemon.process.pid)
            for _ in range(CALLS):
                call()
            faults = (minor_faults(daemon.process.pid) - before) / CALLS
    assert keeps == (faults < PAGES / 2), f"{faults} faults a call"
