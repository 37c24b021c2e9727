"""kill -9 while keys are being made: what was answered must verify afterwards."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient, KmsClientError, SpanSignature

from tests.daemon import spawned

CALLS = 100
ROUNDS = 5


def span(number: int) -> ComplianceSpan:
    """Return a span of its own for each number."""
    return ComplianceSpan(trace_id=number.to_bytes(16, "big"), span_id=b"s" * 8, name="user.login")


def test_every_signature_that_was_answered_verifies_after_a_kill(tmp_path: Path) -> None:
    """The daemon is killed at a random moment of 100 first signatures of new tenants, five times over.

    Each answered signature verifies after the restart with that tenant's key, and the tenant goes on signing with it.
    """
    moment = random.Random(20_251_022)  # noqa: S311  # a moment to kill at, not a secret
    arguments = ("--data-dir", str(tmp_path), "--listen", f"unix:{tmp_path / 'kms.sock'}")
    target = f"unix:{tmp_path / 'kms.sock'}"
    answered: dict[int, SpanSignature] = {}
    for round_ in range(ROUNDS):
        first, kill_after = 1 + round_ * CALLS, moment.randrange(1, CALLS)
        progress = threading.Semaphore(0)
        with spawned(*arguments) as daemon, KmsClient(target, timeout=3) as client:
            daemon.wait_for("serving")

            def sign(
                number: int, client: KmsClient = client, progress: threading.Semaphore = progress
            ) -> tuple[int, SpanSignature | None]:
                try:
                    return number, client.sign_span(f"tenant-{number}", span(number))
                except KmsClientError:
                    return number, None
                finally:
                    progress.release()

            with ThreadPoolExecutor(16) as pool:
                results = [pool.submit(sign, number) for number in range(first, first + CALLS)]
                for _ in range(kill_after):
                    progress.acquire()
                daemon.process.kill()
            answered |= {number: signed for number, signed in (result.result() for result in results) if signed}
    with spawned(*arguments) as daemon, KmsClient(target) as client:
        daemon.wait_for("serving")
        verdicts = {
            client.verify_span(f"tenant-{number}", span(number), signed.signature, signed.key_id).reason
            for number, signed in answered.items()
        }
        same_key = all(
            client.sign_span(f"tenant-{number}", span(number)).key_id == signed.key_id
            for number, signed in answered.items()
        )
    assert 0 < len(answered) < ROUNDS * CALLS
    assert verdicts == {"VALID"}
    assert same_key
