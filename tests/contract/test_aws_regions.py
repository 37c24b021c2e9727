"""Provider aws in several regions: what fails in one goes on to the next, in time, and comes back by itself.

moto has a multi-Region key and its replica. A proxy before each region drops, stalls, throttles or denies; the breakers
run on a clock that stands still, so nothing comes back before a test says so.
"""

import asyncio
import gc
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.core.key_event import KmsCall
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import signing_context
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.aws import provider as aws_provider
from betrace_kms_server.providers.aws import region as aws_region
from betrace_kms_server.providers.aws.provider import AwsProvider, KmsApi, Replica
from betrace_kms_server.providers.aws.region import SdkClients
from betrace_kms_server.providers.breaker import CircuitBreaker
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.rewrapping import rewrap_signing_keys
from betrace_kms_server.signing_keys.seeds import private_key_of, rewrap_seed, unwrap_seed
from betrace_kms_server.stores.sqlite.store import SqliteStore
from botocore import exceptions as sdk
from botocore.retries.standard import ExponentialBackoff

from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.contract.doubles import FakeClock, Kms
from tests.contract.samples import stored_key
from tests.contract.stub_kms import Clients, StubKms
from tests.moto_server import REGION, MotoServer

ELSEWHERE = "eu-west-1"
CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
OPEN_SECONDS = 5.0
ARN = "arn:aws:kms:us-east-1:123456789012:key/mrk-00001111222233334444555566667777"
REPLICA_ARN = ARN.replace(REGION, ELSEWHERE)

NewCache = Callable[..., KeyCache]


@asynccontextmanager
async def impatient(region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
    """Open a real client that tries once, so that a call that is dropped fails at once."""
    config = AioConfig(retries={"mode": "standard", "total_max_attempts": 1})
    async with aioboto3.Session().client("kms", region_name=region, endpoint_url=endpoint, config=config) as client:
        yield client


@dataclass
class Regions:
    """A multi-Region key in two regions, each behind a proxy, and one clock for all breakers."""

    primary: AwsProxy
    replica: AwsProxy
    arn: str
    replica_arn: str
    clock: FakeClock
    clients: Clients = field(default_factory=lambda: Clients(impatient))

    def provider(self, *former: str, call_seconds: float = 10.0, **more: Any) -> AwsProvider:
        """Return a provider in both regions."""
        settings: dict[str, Any] = {
            "replicas": [Replica(self.replica_arn, self.replica.url)],
            "client_factory": self.clients,
            "new_breaker": partial(CircuitBreaker, clock=self.clock),
        }
        return AwsProvider(
            self.arn,
            region=REGION,
            endpoint=self.primary.url,
            former_key_arns=former,
            call_seconds=call_seconds,
            **(settings | more),
        )

    @property
    def calls(self) -> tuple[int, int]:
        """Calls that each region got."""
        return self.primary.calls.total(), self.replica.calls.total()


@pytest.fixture
def regions(moto: MotoServer, clock: FakeClock) -> Iterator[Regions]:
    """Give a new key in two regions that work."""
    arn = moto.create_key(multi_region=True)
    replica_arn = str(moto.kms().replicate_key(arn, ELSEWHERE).arn)
    with aws_proxy(moto.url) as primary, aws_proxy(moto.url) as replica:
        yield Regions(primary, replica, arn, replica_arn, clock)


async def fail(provider: KeyProvider, times: int) -> None:
    """Make calls, whatever comes of them."""
    for _ in range(times):
        await asyncio.gather(provider.generate_data_key(32, CONTEXT), return_exceptions=True)


async def generate(provider: KeyProvider) -> str:
    """Make a data key, and return the ARN of what wrapped it."""
    return (await provider.generate_data_key(32, CONTEXT)).wrapped.master_key_arn


async def encrypt(provider: KeyProvider) -> str:
    """Wrap a key, and return the ARN of what wrapped it."""
    return (await provider.wrap(KeyMaterial(os.urandom(32)), CONTEXT)).master_key_arn


async def test_replica_is_left_alone_while_the_primary_answers(regions: Regions) -> None:
    """No call, and not even a client, goes to another region while the first one works."""
    async with regions.provider() as aws:
        made = await aws.generate_data_key(32, CONTEXT)
        await aws.wrap(made.material, CONTEXT)
        await aws.unwrap(made.wrapped, CONTEXT)
        await aws.check()
        assert ((4, 0), 1, REGION) == (regions.calls, regions.clients.opened, aws.serving_region)
        assert {REGION: "closed", ELSEWHERE: "closed"} == aws.breakers


@pytest.mark.parametrize("verdict", ["drop", "drop-answer", "stall", "throttle"])
async def test_call_goes_on_to_the_replica(regions: Regions, verdict: Verdict) -> None:
    """Each action is answered by the replica within the call, whatever ails the primary, and wrapped keys say so."""
    async with regions.provider(call_seconds=2.0 if verdict == "stall" else 10.0) as aws:
        made = await aws.generate_data_key(32, CONTEXT)
        regions.primary.always(verdict)
        generated, encrypted, opened, _ = await asyncio.gather(
            generate(aws), encrypt(aws), aws.unwrap(made.wrapped, CONTEXT), aws.check()
        )
        assert (regions.replica_arn, regions.replica_arn, made.material.raw) == (generated, encrypted, opened.raw)
        assert ((5, 4), ELSEWHERE) == (regions.calls, aws.serving_region)
        assert (regions.arn, regions.arn) == (aws.master_key_arn, aws.decrypt_key_arns[0])
    assert (2, 2) == (regions.clients.opened, regions.clients.closed)


async def test_sdk_leaves_time_for_the_replica(regions: Regions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real client that would pause for a minute before it tries again leaves the replica its share of the time.

    Making clients takes no time of a call, however busy the machine is.
    """
    monkeypatch.setattr(aws_region, "OPEN_SECONDS", 60.0)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 60.0)
    regions.primary.always("drop")
    async with asyncio.timeout(50.0), regions.provider(call_seconds=4.0, client_factory=SdkClients()) as aws:
        assert regions.replica_arn == await generate(aws)
    assert (1, 1) == regions.calls


async def test_credentials_of_one_region_are_those_of_the_other(
    regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who fails over needs no new credentials: the STS that would give them may be away with the region."""
    async with regions.provider(client_factory=SdkClients()) as aws:
        await aws.check()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        regions.primary.always("throttle")
        assert regions.replica_arn == await generate(aws)


@pytest.mark.parametrize("written_in", [REGION, ELSEWHERE])
async def test_what_one_region_wrote_opens_in_the_other(regions: Regions, new_cache: NewCache, written_in: str) -> None:
    """Messages, bare data keys and wrapped keys under their true ARN open after the change, either way."""
    writing, reading = regions.primary, regions.replica
    if written_in == ELSEWHERE:
        writing, reading = reading, writing
    async with regions.provider() as aws:
        reading.always("drop")
        bare = await aws.generate_data_key(32, CONTEXT)
        sealed = await KeyRing(aws, new_cache()).seal("acme", b"payload", {})
        reading.always("pass")
        writing.always("drop")
        opened = await KeyRing(aws, new_cache()).open("acme", sealed.ciphertext, {})
        unwrapped = await KeyRing(aws, new_cache()).open("acme", bare.wrapped.blob, {})
        direct = await aws.unwrap(bare.wrapped, CONTEXT)
    assert ({written_in}, b"payload", regions.arn) == (
        {arn.split(":")[3] for arn in (sealed.master_key_arn, bare.wrapped.master_key_arn)},
        opened.plaintext,
        opened.master_key_arn,
    )
    assert [bare.material.raw] * 2 == [unwrapped.plaintext, direct.raw]


async def test_answers_are_final(regions: Regions, moto: MotoServer) -> None:
    """A denial, a disabled key and what does not open are no reasons to ask elsewhere, nor to leave KMS alone."""

    async def refused(kind: type[KmsError], call: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            with pytest.raises(kind):
                await call()

    async with regions.provider() as aws:
        regions.primary.always("deny")
        await refused(AccessDenied, partial(generate, aws), 4)
        regions.primary.always("pass")
        await refused(DoesNotOpen, lambda: aws.unwrap(WrappedKey(b"rubbish", regions.arn), CONTEXT), 4)
        moto.kms().disable_key(regions.arn)
        await refused(MasterKeyUnusable, partial(encrypt, aws), 4)
        await refused(MasterKeyUnusable, aws.check, 4)
        assert ((16, 0), "closed") == (regions.calls, aws.breakers[REGION])


async def test_answer_of_the_replica_is_final(regions: Regions, moto: MotoServer) -> None:
    """A replica that refuses names itself, because its key policy and its state are what there is to mend."""
    regions.primary.always("drop")
    async with regions.provider() as aws:
        regions.replica.always("deny")
        with pytest.raises(AccessDenied, match=f"kms:GenerateDataKey on {regions.replica_arn}"):
            await generate(aws)
        regions.replica.always("pass")
        moto.kms(ELSEWHERE).disable_key(regions.replica_arn)
        with pytest.raises(MasterKeyUnusable, match=f"{regions.replica_arn} is Disabled"):
            await aws.check()
        assert regions.arn == aws.master_key_arn


@pytest.mark.parametrize(("verdict", "kind"), [("drop", KmsUnreachable), ("throttle", Throttled)])
async def test_last_failure_is_told_with_its_region(regions: Regions, verdict: Verdict, kind: type[KmsError]) -> None:
    """If no region answers, the error is that of the last one."""
    regions.primary.always("drop")
    regions.replica.always(verdict)
    async with regions.provider() as aws:
        with pytest.raises(kind, match=f"kms:Encrypt in {ELSEWHERE}"):
            await encrypt(aws)


async def test_former_keys_are_asked_for_in_the_first_region_only(regions: Regions, moto: MotoServer) -> None:
    """A former master key has no replica here, so its calls fail with its region and go nowhere else."""
    former = moto.create_key()
    async with regions.provider(former) as aws, AwsProvider(former, region=REGION, endpoint=moto.url) as old:
        made = await old.generate_data_key(32, CONTEXT)
        assert made.material.raw == (await aws.unwrap(made.wrapped, CONTEXT)).raw
        regions.primary.always("drop")
        for call in (aws.unwrap(made.wrapped, CONTEXT), aws.check(former)):
            with pytest.raises(KmsUnreachable):
                await call
        assert (3, 0) == regions.calls


async def test_region_that_fails_too_often_is_not_asked(regions: Regions, caplog: pytest.LogCaptureFixture) -> None:
    """With five failures in ten calls the breaker opens: the replica gets the next calls, the primary none."""
    caplog.set_level(logging.INFO)
    async with regions.provider() as aws:
        await fail(aws, 5)
        regions.primary.always("drop")
        await fail(aws, 4)
        assert "closed" == aws.breakers[REGION]
        await fail(aws, 1)
        assert ({REGION: "open", ELSEWHERE: "closed"}, (10, 5)) == (aws.breakers, regions.calls)
        regions.primary.always("pass")
        regions.clock.now += OPEN_SECONDS - 0.001
        await asyncio.gather(*(generate(aws) for _ in range(20)), aws.check())
        assert ((10, 26), ELSEWHERE) == (regions.calls, aws.serving_region)
    assert [f"KMS in {REGION} fails too often: it is left alone for a few seconds, then tried again"] == told(caplog)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of regions."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("KMS in ")]


async def test_primary_serves_again_when_it_is_back(regions: Regions, caplog: pytest.LogCaptureFixture) -> None:
    """After its time the breaker lets calls through on trial, and three good ones close it."""
    async with regions.provider() as aws:
        regions.primary.always("drop")
        await fail(aws, 10)
        regions.clock.now += OPEN_SECONDS
        assert ("half_open", regions.replica_arn) == (aws.breakers[REGION], await generate(aws))
        assert "open" == aws.breakers[REGION]
        regions.primary.always("pass")
        regions.clock.now += OPEN_SECONDS
        caplog.clear()
        caplog.set_level(logging.INFO)
        assert [regions.arn] * 2 == [await generate(aws) for _ in range(2)]
        assert "half_open" == aws.breakers[REGION]
        assert (regions.arn, "closed", REGION) == (await generate(aws), aws.breakers[REGION], aws.serving_region)
    assert [f"KMS in {REGION} answers again"] == told(caplog)


async def test_trial_of_a_stalled_region_is_short(regions: Regions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call on trial gives up early on a region while there is another, and does not spend half of its time on it."""
    monkeypatch.setattr(aws_provider, "TRIAL_SECONDS", 0.05)
    async with regions.provider(call_seconds=20.0) as aws:
        regions.primary.always("drop")
        await fail(aws, 10)
        regions.clock.now += OPEN_SECONDS
        regions.primary.always("stall")
        async with asyncio.timeout(5.0):
            assert regions.replica_arn == await generate(aws)
        assert ((11, 11), "open") == (regions.calls, aws.breakers[REGION])


async def test_calls_that_are_cancelled_give_back_their_trials(regions: Regions) -> None:
    """Callers that go away during a trial do not keep the primary from being tried again."""
    async with regions.provider() as aws:
        regions.primary.always("drop")
        await fail(aws, 10)
        regions.clock.now += OPEN_SECONDS
        begun = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()

        def stall(action: str) -> Verdict:
            loop.call_soon_threadsafe(begun.release)
            return "stall"

        regions.primary.judge = stall
        trials = [asyncio.create_task(generate(aws)) for _ in range(3)]
        for _ in trials:
            await begun.acquire()
        assert regions.replica_arn == await generate(aws)
        for trial in trials:
            trial.cancel()
        assert [asyncio.CancelledError] * 3 == [
            type(outcome) for outcome in await asyncio.gather(*trials, return_exceptions=True)
        ]
        regions.primary.always("pass")
        assert [regions.arn] * 3 == [await generate(aws) for _ in range(3)]
        assert "closed" == aws.breakers[REGION]


async def test_one_region_alone_fails_fast(regions: Regions) -> None:
    """With its breaker open and nowhere to go, a call fails at once and says why; the check still asks."""
    async with regions.provider(replicas=()) as aws:
        regions.primary.always("drop")
        await fail(aws, 10)
        for call in (generate, encrypt):
            with pytest.raises(KmsUnreachable, match=f"KMS in {REGION} failed too often and is left alone"):
                await call(aws)
        assert (10, 0) == regions.calls
        with pytest.raises(KmsUnreachable, match="no answer from KMS to kms:DescribeKey"):
            await aws.check()
        regions.primary.always("pass")
        for _ in range(4):
            await aws.check()
        assert ((15, 0), "open") == (regions.calls, aws.breakers[REGION])


async def test_checks_close_the_breaker_of_an_idle_daemon(regions: Regions) -> None:
    """Looking at the master key counts as a trial, but one look does not close the breaker."""
    async with regions.provider(replicas=()) as aws:
        regions.primary.always("drop")
        await fail(aws, 10)
        regions.primary.always("pass")
        regions.clock.now += OPEN_SECONDS
        states = []
        for _ in range(3):
            await aws.check()
            states.append(aws.breakers[REGION])
    assert ["half_open", "half_open", "closed"] == states


async def test_both_regions_left_alone_are_named(regions: Regions) -> None:
    """With all breakers open, nobody is asked but by the check, which asks the primary."""
    async with regions.provider() as aws:
        regions.primary.always("drop")
        regions.replica.always("drop")
        await fail(aws, 10)
        with pytest.raises(KmsUnreachable, match=f"KMS in {REGION} and {ELSEWHERE} failed too often"):
            await generate(aws)
        assert (10, 10) == regions.calls
        regions.primary.always("pass")
        await aws.check()
        assert ((11, 10), REGION) == (regions.calls, aws.serving_region)


async def test_silence_everywhere_ends_in_time(regions: Regions) -> None:
    """If no region answers, the call ends by its own bound, and silence counts as a failure of each."""
    regions.primary.always("stall")
    regions.replica.always("stall")
    async with regions.provider(call_seconds=0.4) as aws, asyncio.timeout(5.0):
        with pytest.raises(KmsUnreachable):
            await generate(aws)
        await asyncio.gather(*(fail(aws, 1) for _ in range(9)))
        assert {REGION: "open", ELSEWHERE: "open"} == aws.breakers


async def test_no_call_fails_when_the_primary_dies(regions: Regions) -> None:
    """Of fifty callers at once, none notices: some calls hang, some break, and the replica answers them all."""
    passed = iter(range(10_000))

    def die(action: str) -> Verdict:
        number = next(passed)
        return "pass" if number < 40 else ("drop-answer", "stall")[number % 2]

    async def caller(aws: AwsProvider) -> bool:
        made = await aws.generate_data_key(32, CONTEXT)
        again = await aws.generate_data_key(32, CONTEXT)
        opened = [await aws.unwrap(key.wrapped, CONTEXT) for key in (made, again)]
        return [key.raw for key in opened] == [made.material.raw, again.material.raw]

    async with regions.provider(call_seconds=6.0, client_factory=SdkClients()) as aws:
        regions.primary.judge = die
        assert [True] * 50 == await asyncio.gather(*(caller(aws) for _ in range(50)))
        assert ({REGION: "open", ELSEWHERE: "closed"}, ELSEWHERE) == (aws.breakers, aws.serving_region)


async def test_attempts_are_observed_one_by_one(regions: Regions) -> None:
    """Metrics and traces see each attempt with its region, and none that was not made."""
    seen: list[tuple[str, str, str]] = []

    class Call:
        def answered(self, request_id: str | None) -> None: ...

    @contextmanager
    def observe(action: str, region: str) -> Iterator[KmsCall]:
        try:
            yield Call()
        except KmsError as error:
            seen.append((action, region, error.reason))
            raise
        seen.append((action, region, "OK"))

    async with regions.provider(observe=observe) as aws:
        regions.primary.always("drop")
        await fail(aws, 11)
    once = [("GenerateDataKey", REGION, "KMS_UNREACHABLE"), ("GenerateDataKey", ELSEWHERE, "OK")]
    assert [*once * 10, once[1]] == seen


async def test_rows_of_a_replica_are_not_moved(regions: Regions, store: SqliteStore) -> None:
    """A signing key that was wrapped while a replica served is at home, and is not wrapped again at every start."""
    async with regions.provider() as aws:
        stored = await store.create(stored_key(wrapped_seed=WrappedKey(b"blob", regions.replica_arn)))
        await rewrap_signing_keys(aws, store)
        assert (stored, (0, 0)) == (await store.active("acme"), regions.calls)


async def test_signing_key_moves_while_a_replica_serves(regions: Regions, moto: MotoServer, store: SqliteStore) -> None:
    """A seed that the replica wraps is unwrapped there for comparison, and opens when the primary is back."""
    former = moto.create_key()
    seed, context = KeyMaterial(os.urandom(32)), signing_context("acme", "kid")
    async with regions.provider(former) as aws, AwsProvider(former, region=REGION, endpoint=moto.url) as old:
        wrapped, public_key = await old.wrap(seed, context), private_key_of(seed).public_key().public_bytes_raw()
        stored = await store.create(stored_key("acme", key_id="kid", wrapped_seed=wrapped, public_key=public_key))
        regions.primary.always("drop")
        await rewrap_seed(aws, store, stored, seed)
        moved = await store.active("acme")
        assert moved is not None
        regions.primary.always("pass")
        regions.replica.always("drop")
        again = await unwrap_seed(aws, moved)
    assert (regions.replica_arn, seed.raw) == (moved.wrapped_seed.master_key_arn, again.raw)


def test_provider_tells_which_key_is_the_current_one(kms: Kms) -> None:
    """Every provider knows its master key from a foreign one, and has regions that work until the contrary shows."""
    ours, foreign = kms.provider.master_key_arn, kms.foreign.master_key_arn
    assert (True, False) == (kms.provider.is_current(ours), kms.provider.is_current(foreign))
    assert {"closed"} | set(kms.provider.breakers.values()) == {"closed"}
    assert kms.provider.serving_region in {"local", *kms.provider.breakers}


def scripted(
    answer: Callable[[str, Mapping[str, Any]], Awaitable[Any]],
    *regions: str,
    call_seconds: float = 5.0,
    new_breaker: Callable[[str], CircuitBreaker] = CircuitBreaker,
) -> AwsProvider:
    """Return a provider whose client in each region does `answer(region, parameters)`."""

    @asynccontextmanager
    async def open_client(region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        async def in_region(action: str, parameters: Mapping[str, Any]) -> Any:
            return await answer(region, parameters)

        yield StubKms(in_region)

    return AwsProvider(
        ARN,
        region=REGION,
        replicas=[Replica(ARN.replace(REGION, region)) for region in regions],
        call_seconds=call_seconds,
        client_factory=open_client,
        new_breaker=new_breaker,
    )


async def test_each_region_is_told_its_own_arn() -> None:
    """A region knows only its own replica, so a call names that one, whichever of the family wrapped the key."""
    asked = []

    async def answer(region: str, parameters: Mapping[str, Any]) -> Any:
        asked.append((region, parameters["KeyId"]))
        raise TimeoutError

    async with scripted(answer, ELSEWHERE) as aws:
        for arn in (ARN, REPLICA_ARN, ARN.replace(REGION, "ap-south-1")):
            with pytest.raises(KmsUnreachable):
                await aws.unwrap(WrappedKey(b"blob", arn), CONTEXT)
            assert (ARN, True) == (aws.unwrapping_key_for(arn), aws.is_current(arn))
    assert [(REGION, ARN), (ELSEWHERE, REPLICA_ARN)] * 3 == asked


async def test_missing_credentials_are_missing_everywhere() -> None:
    """Without credentials no other region is asked, and the breaker learns nothing: ten of them leave it as it was."""
    errors = [sdk.CredentialRetrievalError(provider="container-role", error_msg="refused")] * 10 + [TimeoutError()] * 5
    asked: Counter[str] = Counter()

    async def answer(region: str, parameters: Mapping[str, Any]) -> Any:
        asked[region] += 1
        raise errors.pop(0) if region == REGION else TimeoutError

    async with scripted(answer, ELSEWHERE) as aws:
        for kind in [CredentialsUnavailable] * 10 + [KmsUnreachable] * 5:
            with pytest.raises(kind):
                await generate(aws)
        assert ({REGION: 15, ELSEWHERE: 5}, "closed") == (asked, aws.breakers[REGION])


async def test_key_is_zeroed_when_its_call_has_failed() -> None:
    """No error leads back to a call that it came from, so the key goes at once, and not when garbage is collected."""
    key = KeyMaterial(os.urandom(32))
    raw = key.raw

    async def answer(region: str, parameters: Mapping[str, Any]) -> Any:
        raise TimeoutError

    async with scripted(answer, ELSEWHERE) as aws:
        gc.disable()
        try:
            with suppress(KmsUnreachable):
                await aws.wrap(key, CONTEXT)
            del key
            assert bytearray(32) == raw
        finally:
            gc.enable()


async def test_time_is_shared_by_the_regions_that_may_be_asked() -> None:
    """Three silent regions get a third each; when one of them is left alone, the others get a half."""
    began: list[float] = []
    now = asyncio.get_running_loop().time

    async def answer(region: str, parameters: Mapping[str, Any]) -> Any:
        began.append(now())
        await asyncio.Event().wait()

    def breaker(region: str) -> CircuitBreaker:
        return CircuitBreaker(region, window=1 if region == "us-west-2" else 10, clock=FakeClock())

    async with scripted(answer, ELSEWHERE, "us-west-2", call_seconds=1.2, new_breaker=breaker) as aws:
        for expected in ([0.0, 0.4, 0.8, 1.2], [0.0, 0.6, 1.2]):
            start = now()
            with pytest.raises(KmsUnreachable):
                await generate(aws)
            assert pytest.approx(expected, abs=0.15) == [time - start for time in (*began, now())]
            began.clear()


async def test_throttling_opens_no_breaker(regions: Regions) -> None:
    """KMS that throttles is there: the calls of other tenants still go to it, at a slower pace."""
    regions.primary.always("throttle")
    async with regions.provider() as aws:
        await fail(aws, 10)
        assert (10, 10) == regions.calls
        assert "closed" == aws.breakers[REGION]
        regions.primary.always("pass")
        assert regions.arn == await generate(aws)
