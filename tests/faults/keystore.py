"""The SQLite key store is damaged while no daemon runs: each answer afterwards is right or a refusal, no key is new.

Bits are flipped all over the file before the store is opened; pages are flipped in, zeroed and cut off before a daemon
serves all tenants over gRPC.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, InternalError, KmsClientError, PublicKeys, SpanSignature
from betrace_kms_server.core.errors import KmsError, StartRefused
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.contract.samples import stored_key
from tests.daemon import running
from tests.faults.outcome import Outcome

_PROMISE = "found: the daemon does not start, or that tenant is refused; no other answer is wrong, no key is new"
FAULTS = {
    "a bit of the key store flips": _PROMISE + "; a stop stays in force",
    "a bit flips in each page, then a daemon serves": _PROMISE,
    "each page is zeroed, then a daemon serves": _PROMISE,
    "the file ends at each page, then a daemon serves": _PROMISE,
}
SHORT = tuple(FAULTS)
_PAGE, _TENANTS, _FLIPS_A_PAGE = 4096, 14, 4
_SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Damage a store in each way; in a short run, in some of the places."""
    moment, step = random.Random(20_261_126), max(1, round(60 / seconds))  # noqa: S311  # places, not secrets
    for fault in faults:
        if "key store" in fault:
            yield await _flips(folder / "store", fault, moment, step)
            continue
        daemon = _Daemon(folder / str(list(FAULTS).index(fault)))
        await daemon.fill()
        yield await daemon.damaged(fault, list(_damages(fault, daemon.good, moment))[:: max(1, step // 20)])


def _damages(fault: str, good: bytes, moment: random.Random) -> Iterator[bytes]:
    for start in range(0, len(good), _PAGE):
        if "zeroed" in fault:
            yield good[:start] + bytes(_PAGE) + good[start + _PAGE :]
        elif "ends" in fault:
            yield good[:start]
        else:
            used = [at for at in range(start, start + _PAGE) if good[at]]
            for at in moment.choices(used, k=_FLIPS_A_PAGE):
                yield _flipped(good, at, moment.randrange(8))


def _flipped(good: bytes, at: int, bit: int) -> bytes:
    return good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]


async def _flips(folder: Path, fault: str, moment: random.Random, step: int) -> Outcome:
    """Flip a bit of each byte that is no zero, or of every `step`-th, and ask a store for all that it had."""
    folder.mkdir()  # noqa: ASYNC240  # nothing else runs meanwhile
    database, truth = folder / DATABASE_FILE, dict[str, list[StoredKey]]()
    async with open_sqlite(database) as store:
        for number in range(_TENANTS):
            first = await store.create(stored_key(f"tenant-{number:03}"))
            successor = stored_key(first.tenant_id, create_time_ms=first.create_time_ms + 9)
            if number % 3 == 1:
                await store.rotate(first, successor)
            elif number % 3 == 2:
                await store.revoke(first, first.create_time_ms + 5, successor)
            truth[first.tenant_id] = list(await store.all(first.tenant_id))
        await store.set_lock(LockState("breach", 1))
    good = database.read_bytes()
    tally, problems = Counter[str](), list[str]()
    for at in [at for at, byte in enumerate(good) if byte][::step]:
        bit = moment.randrange(8)
        database.write_bytes(_flipped(good, at, bit))
        try:
            async with open_sqlite(database) as store:
                refusals, wrong = await _asked(store, truth)
        except StartRefused:
            tally["not opened"] += 1
            continue
        tally["some tenants refused" if refusals else "without effect"] += 1
        problems += [f"byte {at}, bit {bit}: {what}" for what in wrong]
    found = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.items()))
    return Outcome(
        fault, f"{tally.total():,} flips in {len(good) // _PAGE} pages: {found}, wrong {len(problems)}", problems
    )


async def _asked(store: KeyStore, truth: Mapping[str, Sequence[StoredKey]]) -> tuple[int, Sequence[str]]:
    """Return how many questions were refused, and which answers are wrong."""
    refused, wrong = 0, list[str]()

    async def ask(what: str, answer: Awaitable[object], right: object) -> None:
        nonlocal refused
        try:
            given = await answer
        except KmsError:
            refused += 1
        else:
            if given != right:
                wrong.append(f"{what}: {given}")

    await ask("stop", _locked(store), True)
    await ask("sealing key type", store.sealing_key_type(), "sealing")
    for tenant_id, keys in truth.items():
        await ask(f"active key of {tenant_id}", store.active(tenant_id), keys[-1])
        await ask(f"keys of {tenant_id}", store.all(tenant_id), keys)
        await ask(f"first key of {tenant_id}", store.create(stored_key(tenant_id)), keys[-1])
    return refused, wrong


async def _locked(store: KeyStore) -> bool:
    return await store.lock_state() is not None


class _Daemon:
    """A daemon with tenants of which everything is known, to be started on damaged copies of its key store."""

    def __init__(self, folder: Path) -> None:
        self.good = b""
        self._folder = folder
        self._database = folder / DATABASE_FILE
        self._signatures: dict[str, SpanSignature] = {}
        self._keys: dict[str, PublicKeys] = {}

    async def fill(self) -> None:
        """Make tenants, and rotate some."""
        async with running(self._folder) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
            async with grpc.aio.insecure_channel(f"unix:{self._folder}/admin.sock") as channel:
                for number in range(_TENANTS):
                    tenant = f"tenant-{number:03}"
                    self._signatures[tenant] = await client.sign_span(tenant, _SPAN)
                    if number % 3 == 1:
                        request = admin_pb2.RotateKeysRequest(tenant_id=tenant)
                        await KmsAdminServiceStub(channel).RotateKeys(request)
            for tenant in self._signatures:
                self._keys[tenant] = await client.get_public_keys(tenant)
        self.good = self._database.read_bytes()

    async def damaged(self, fault: str, contents: Sequence[bytes]) -> Outcome:
        """Start on each content, and ask for all tenants."""
        tally, problems = Counter[str](), list[str]()
        for number, content in enumerate(contents):
            self._database.write_bytes(content)
            try:
                async with running(self._folder) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
                    refused = 0
                    for tenant in self._signatures:
                        try:
                            problems += [
                                f"damage {number}: {tenant} {what}" for what in await self._wrong(client, tenant)
                            ]
                        except KmsClientError as error:
                            refused += 1
                            if isinstance(error, InternalError):
                                problems.append(f"damage {number}: {tenant} {error}")
                    tally[
                        "some tenants refused" if 0 < refused < _TENANTS else "all refused" if refused else "no effect"
                    ] += 1
            except (StartRefused, KmsError):
                tally["not started"] += 1
                if self._database.read_bytes() != content:
                    problems.append(f"damage {number}: the file was changed by a start that was refused")
        found = ", ".join(f"{name} {count}" for name, count in sorted(tally.items()))
        return Outcome(fault, f"{tally.total()} starts: {found}, wrong {len(problems)}", problems)

    async def _wrong(self, client: AsyncKmsClient, tenant: str) -> Sequence[str]:
        """Return which answers about a tenant are not what they were."""
        known, wrong = self._signatures[tenant], []
        if await client.get_public_keys(tenant) != self._keys[tenant]:
            wrong.append("has other keys")
        if not (await client.verify_span(tenant, _SPAN, known.signature, known.key_id)).valid:
            wrong.append("does not verify what it signed")
        signed = await client.sign_span(tenant, _SPAN)
        if signed.key_id not in {key.key_id for key in self._keys[tenant].keys}:
            wrong.append("signs with a new key")
        return wrong
