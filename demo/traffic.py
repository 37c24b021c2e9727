"""The backend of the tour, a process of its own: each of its requests signs a span, seals a field and opens it again.

    python -m demo.traffic 127.0.0.1:50051

It writes its counts since the start to stdout, one line of JSON for each round of requests.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, KmsClientError

TENANTS = tuple(f"customer-{number}" for number in range(1, 9))
_PAUSE_SECONDS = 0.25


@dataclass
class Counts:
    """Requests that were served, and that failed."""

    served: int = 0
    failed: int = 0
    problem: str = ""
    """What the last one that failed was told."""


async def serve_request(kms: AsyncKmsClient, tenant: str) -> None:
    """Do what a login of a tenant's user takes: evidence of it, and a field that is stored sealed."""
    span = ComplianceSpan(trace_id=os.urandom(16), span_id=os.urandom(8), name="user.login", framework="soc2")
    await kms.sign_span(tenant, span)
    sealed = await kms.encrypt(tenant, b"alice@example.com", {"field": "email"})
    await kms.decrypt(tenant, sealed.ciphertext_blob, {"field": "email"})


async def backend(address: str) -> None:
    """Serve requests of every tenant until the process is ended."""
    counts = Counts()
    async with AsyncKmsClient(address) as kms:
        while True:
            for outcome in await asyncio.gather(
                *(serve_request(kms, tenant) for tenant in TENANTS), return_exceptions=True
            ):
                if isinstance(outcome, KmsClientError):
                    counts.failed, counts.problem = counts.failed + 1, str(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    counts.served += 1
            print(json.dumps(vars(counts)), flush=True)
            await asyncio.sleep(_PAUSE_SECONDS)


@dataclass
class Traffic:
    """A backend that runs, and its latest counts."""

    _process: "subprocess.Popen[str]"
    counts: Counts = field(default_factory=Counts)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def after(self, requests: int, timeout: float = 30.0) -> Counts:
        """Return the counts once so many more requests are over."""
        with self._changed:
            target = self.counts.served + self.counts.failed + requests
            self._changed.wait_for(lambda: self._ended or self.counts.served + self.counts.failed >= target, timeout)
            return self.counts

    def end(self) -> None:
        """End the backend. Its counts stay."""
        self._process.terminate()
        self._process.wait()
        with self._changed:
            self._changed.wait_for(lambda: self._ended)

    def follow(self) -> None:
        """Take the counts that the backend writes, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.counts = Counts(**json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextmanager
def traffic(address: str) -> Iterator[Traffic]:
    """Run a backend that calls the daemon at an address; end it in the end."""
    command = [sys.executable, "-m", "demo.traffic", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    running = Traffic(process)
    reader = threading.Thread(target=running.follow)
    reader.start()
    try:
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join()
        if process.stdout:
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(backend(sys.argv[1]))
