"""kill -9 while a daemon makes and changes keys: what it acknowledged must be there after its restart.

Callers create tenants' keys, sign, rotate one and all, revoke, seal, seal again, and lock and unlock the daemon until
it is gone. With branch keys, half of them create branch keys, make new versions of earlier ones, and seal batches, in
no order. A kill comes after a number of answers, so that it may come amid each of these also where they take long.
`make drill-kill` (kill_all.py) kills a thousand times in all, `test_kill.py` a few.
"""

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import Ciphertext, KmsClient, KmsClientError

from tests.daemon import Process, spawned
from tests.faults.acknowledged import Ledger, span

CALLERS = 8
BRANCH_KEYS = {"KMS_ENCRYPTION_MODE": "branch-key"}
"""What to start a daemon with, so that its messages are under branch keys, which it makes and rotates."""
LOCKING = 5
"""One kill of so many comes while an operator locks and unlocks."""
ANSWERS = 100
"""A kill comes after less answers than this, from the start on,"""
SECONDS = 3.0
"""and after this time at the latest."""
STARTS = 5
BATCH = 20
"""Messages that are sealed at once under a branch key, each with an encryption context of its own."""


@dataclass
class Report:
    """What came of the kills of one kind; restarts to SERVING in seconds."""

    kills: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    lost: list[str] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)


class Drill:
    """One daemon that is killed again and again, on one key store. `environ` says which."""

    def __init__(self, folder: Path, seed: int, environ: Mapping[str, str] | None = None) -> None:
        self.report = Report()
        self.listen = f"unix:{folder}/kms.sock"
        self._admin = f"unix:{folder}/data/admin.sock"
        self._arguments = ("--data-dir", f"{folder}/data", "--listen", self.listen)
        self._environ = dict(environ or {})
        self._random = random.Random(seed)  # noqa: S311  # moments to kill at, not secrets
        self._next_tenant = 0
        self._branch_tenants: list[str] = []
        self._lock = threading.Lock()

    def run(self, kills: int) -> None:
        """Kill a number of times, and look in the end whether everything is there."""
        for number in range(kills):
            self._kill_once([self._operate] if number % LOCKING == LOCKING - 1 else self._changing())
        self.check()

    def _changing(self) -> Sequence[Callable[[KmsClient, Any], None]]:
        if BRANCH_KEYS.items() <= self._environ.items():
            return [self._change_keys, self._use_branch_keys] * (CALLERS // 2)
        return [self._change_keys] * CALLERS

    def check(self) -> None:
        """Start a daemon once more, and add what is lost to the report."""
        with self._serving(), KmsClient(self.listen, timeout=20, wait_for_ready=False) as client:
            self.report.lost += self.report.ledger.lost(client)

    @contextmanager
    def _serving(self) -> Iterator[Process]:
        """Start the daemon, note how long that took, and check whether it is locked as it should be.

        An emulator that was too busy to answer is asked again by the next start, as in Kubernetes.
        """
        for _ in range(STARTS):
            began = time.monotonic()
            with spawned(*self._arguments, environ=self._environ) as daemon:
                try:
                    daemon.wait_for("serving", 60)
                except AssertionError:
                    if "no answer from DynamoDB" not in daemon.log:
                        raise
                    continue
                self.report.restarts.append(time.monotonic() - began)
                with grpc.insecure_channel(self._admin) as channel:
                    self.report.lost += self.report.ledger.lost_lock(KmsAdminServiceStub(channel))
                yield daemon
                return
        raise AssertionError(f"the emulator answered none of {STARTS} starts")

    def _kill_once(self, callers: Sequence[Callable[[KmsClient, Any], None]]) -> None:
        stopped = threading.Event()
        with self._serving() as daemon:
            with ThreadPoolExecutor(CALLERS) as pool:
                calling = [pool.submit(self._call, caller, stopped) for caller in callers]
                self._await_moment()
                daemon.process.kill()
                stopped.set()
            for each in calling:
                each.result()
        self.report.kills += 1

    def _await_moment(self) -> None:
        """Wait for some answers, and a little longer, so that the next ones are under way."""
        counts = self.report.ledger.counts
        answers, deadline = counts.total() + self._random.randrange(ANSWERS), time.monotonic() + SECONDS
        while counts.total() < answers and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self._random.uniform(0.0, 0.03))

    def _call(self, caller: Callable[[KmsClient, Any], None], stopped: threading.Event) -> None:
        """Let a caller work until the daemon is gone."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with (
            KmsClient(self.listen, timeout=3, wait_for_ready=False) as client,
            grpc.insecure_channel(self._admin, options) as channel,
            suppress(KmsClientError, grpc.RpcError),
        ):
            while not stopped.is_set():
                caller(client, KmsAdminServiceStub(channel))

    def _change_keys(self, client: KmsClient, admin: Any) -> None:
        """Do to a new tenant's keys what can be done to keys, and note what was acknowledged."""
        ledger = self.report.ledger
        with self._lock:
            self._next_tenant += 1
            number = self._next_tenant
        tenant, payload, context = f"tenant-{number}", b"payload %d" % number, {"field": f"{number}"}
        signed = client.sign_span(tenant, span(tenant))
        ledger.signatures[tenant, signed.key_id] = signed
        ledger.counts["created"] += 1
        sealed = client.encrypt(tenant, payload, context).ciphertext_blob
        ledger.sealed.append((tenant, context, sealed, payload))
        ledger.counts["sealed"] += 1
        ledger.sealed.append((tenant, {}, client.re_encrypt(tenant, sealed, context, {}).ciphertext_blob, payload))
        ledger.counts["sealed again"] += 1
        data_key = client.generate_data_key(tenant)
        ledger.sealed.append((tenant, {}, data_key.ciphertext_blob, data_key.plaintext))
        admin.RotateKeys(admin_pb2.RotateKeysRequest(tenant_id=tenant), timeout=3)
        ledger.retired.add((tenant, signed.key_id))
        ledger.counts["rotated"] += 1
        ledger.sealed.append((tenant, {}, client.encrypt(tenant, payload).ciphertext_blob, payload))
        ledger.counts["sealed after a rotation"] += 1
        second = client.sign_span(tenant, span(tenant))
        ledger.signatures[tenant, second.key_id] = second
        if number % 2:
            ledger.revoking.add((tenant, second.key_id))
            admin.RevokeKey(admin_pb2.RevokeKeyRequest(tenant_id=tenant, key_id=second.key_id), timeout=3)
            ledger.retired.add((tenant, second.key_id))
            ledger.revoked.add((tenant, second.key_id))
            ledger.counts["revoked"] += 1
        if number % 10 == 0:
            before = set(ledger.signatures)
            if not admin.RotateKeys(admin_pb2.RotateKeysRequest(all=True), timeout=10).failed:
                ledger.retired |= before
                ledger.counts["rotated all"] += 1

    def _use_branch_keys(self, client: KmsClient, admin: Any) -> None:
        """Make a branch key, a new version of one, or neither; then seal under it, and note what was acknowledged."""
        ledger = self.report.ledger
        with self._lock:
            chance = self._random.random()
            created = chance < 0.3 or not self._branch_tenants
            self._next_tenant += created
            tenant = f"branch-{self._next_tenant}" if created else self._random.choice(self._branch_tenants)
        if not created and chance < 0.6:
            admin.RotateKeys(admin_pb2.RotateKeysRequest(tenant_id=tenant), timeout=3)
            ledger.counts["versions"] += 1
        items = [(secrets.token_bytes(16), {"record": f"{number}"}) for number in range(BATCH)]
        for (plaintext, context), sealed in zip(items, client.encrypt_batch(tenant, items), strict=True):
            if isinstance(sealed, Ciphertext):
                ledger.sealed.append((tenant, context, sealed.ciphertext_blob, plaintext))
        if created:
            self._branch_tenants.append(tenant)
        ledger.counts["batches of a new branch key" if created else "batches"] += 1

    def _operate(self, client: KmsClient, admin: Any) -> None:
        """Lock and unlock, and note what was acknowledged."""
        ledger = self.report.ledger
        ledger.locked = None
        if admin.Lock(admin_pb2.LockRequest(reason="drill"), timeout=3).stored:
            ledger.locked = True
        ledger.counts["locked"] += 1
        time.sleep(self._random.uniform(0.0, 0.02))  # so that some kills come between two answers
        ledger.locked = None
        admin.Unlock(admin_pb2.UnlockRequest(), timeout=3)
        ledger.locked = False
        ledger.counts["unlocked"] += 1
