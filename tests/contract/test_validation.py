"""Validation: every provider and store that works passes, and each way not to work gets the step that mends it."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core import errors
from betrace_kms_server.core.errors import AccessDenied, KmsError
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.operations.remedies import REMEDIES, remedy
from betrace_kms_server.operations.validation import READY, Validation, Validator
from betrace_kms_server.operations.validation_run import Test
from betrace_kms_server.providers.aws import remedies as aws_remedies
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.azure import remedies as azure_remedies
from betrace_kms_server.providers.gcp import remedies as gcp_remedies
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.providers.pkcs11 import remedies as pkcs11_remedies
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.providers.vault import remedies as vault_remedies
from betrace_kms_server.stores.sqlite.store import SqliteStore
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from tests.contract.doubles import FakeClock, Kms
from tests.contract.samples import ARN, stored_key
from tests.contract.stub_kms import provider, stubbed
from tests.moto_server import REGION, MotoServer

ALL = [
    "describe_key",
    "generate_data_key",
    "encrypt",
    "decrypt",
    "wrong_context",
    "key_retrieval_cache_miss",
    "key_retrieval_cache_hit",
    "key_store",
    "clock_skew",
    "configuration",
]
CONTEXT = {"tenantId": "betrace-kms:validate", "keyType": "encryption"}
ROLE = "arn:aws:sts::123456789012:assumed-role/betrace-backend-role/i-0abc"
METADATA = {"Arn": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}

NewValidator = Callable[..., Validator]


@pytest.fixture
def new_validator(store: SqliteStore, clock: FakeClock) -> NewValidator:
    """Give a maker of validators over an empty store, on a clock that stands still."""

    def make(
        provider: KeyProvider,
        *,
        deployment: Sequence[Finding] = (),
        logical_name: str | None = None,
    ) -> Validator:
        return Validator(
            provider,
            store,
            deployment=deployment,
            logical_name=logical_name,
            clock=clock,
            now=lambda: 1.5e9,
        )

    return make


class SmallKms:
    """A KMS that keeps its contract in memory, but for the actions of `failures`; notes what it is asked."""

    def __init__(self, failures: Mapping[str, BaseException] | None = None) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self._failures = failures or {}
        self._wrapped: dict[bytes, tuple[bytes, Mapping[str, str]]] = {}

    async def __call__(self, action: str, parameters: Mapping[str, Any]) -> Any:
        self.asked.append((action, parameters))
        if action in self._failures:
            raise self._failures[action]
        if action == "DescribeKey":
            return {"KeyMetadata": METADATA}
        if action == "Decrypt":
            plaintext, context = self._wrapped[parameters["CiphertextBlob"]]
            if context != parameters["EncryptionContext"]:
                raise answer("InvalidCiphertextException", "Decrypt")
            return {"Plaintext": plaintext, "KeyId": ARN}
        plaintext, blob = bytes(parameters.get("Plaintext", os.urandom(32))), os.urandom(40)
        self._wrapped[blob] = plaintext, parameters["EncryptionContext"]
        return {"Plaintext": plaintext, "CiphertextBlob": blob, "KeyId": ARN}


def answer(code: str, action: str, message: str = "") -> ClientError:
    """Return the SDK's error for an answer of KMS."""
    return ClientError({"Error": {"Code": code, "Message": message}}, action)


def denial(action: str) -> ClientError:
    """Return a denial in the words of KMS."""
    because = "because no identity-based policy allows the action"
    message = f"User: {ROLE} is not authorized to perform: kms:{action} on resource: {ARN} {because}"
    return answer("AccessDeniedException", action, message)


def failed(outcome: Validation) -> Mapping[str, str]:
    """Return the messages of the tests that did not pass, by name."""
    return {test.name: test.message for test in outcome.tests if not test.passed}


def message(outcome: Validation, name: str) -> str:
    """Return one test's message."""
    (found,) = [test.message for test in outcome.tests if test.name == name]
    return found


async def test_what_works_passes(kms: Kms, new_validator: NewValidator) -> None:
    """With each provider, all tests run in their order and pass."""
    outcome = await new_validator(kms.provider).run()
    assert (ALL, {}, True) == ([test.name for test in outcome.tests], failed(outcome), outcome.passed)
    assert (kms.provider.name, 1.5e9) == (outcome.provider, outcome.time)


async def test_targets_are_those_of_the_setup_guide(kms: Kms, new_validator: NewValidator) -> None:
    """A call may take 100 ms and a cached key 10 ms; the other tests have no target."""
    outcome = await new_validator(kms.provider).run()
    targets = {test.name: test.target_ms for test in outcome.tests if test.target_ms}
    calls = ("describe_key", "generate_data_key", "encrypt", "decrypt", "key_retrieval_cache_miss")
    assert {**dict.fromkeys(calls, 100), "key_retrieval_cache_hit": 10} == targets


async def test_production_setup_is_ready(moto: MotoServer, kms_key: str, new_validator: NewValidator) -> None:
    """Where there is nothing to note, the one recommendation is to go."""
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        assert [READY] == (await new_validator(aws).run()).recommendations


async def test_nothing_is_left_behind(kms: Kms, new_validator: NewValidator, store: SqliteStore) -> None:
    """A run makes a known number of calls, and the store has what it had."""
    key = stored_key()
    await store.create(key)
    await new_validator(kms.provider).run()
    assert {"GenerateDataKey": 1, "Encrypt": 1, "Decrypt": 3} == {
        action: count for action, count in kms.calls.items() if action != "DescribeKey"
    }
    assert ([key], {ARN}) == (await store.all("acme"), await store.wrapped_by())


async def test_calls_are_for_a_tenant_of_its_own(new_validator: NewValidator) -> None:
    """In CloudTrail the calls are told from those for a tenant by their encryption context."""
    kms = SmallKms()
    async with provider(stubbed(kms)) as aws:
        await new_validator(aws).run()
    contexts = [parameters["EncryptionContext"] for action, parameters in kms.asked if action != "DescribeKey"]
    other = {**CONTEXT, "purpose": "must not open"}
    assert [CONTEXT, CONTEXT, CONTEXT, other, CONTEXT] == contexts


async def test_context_of_branch_keys_is_tried(new_validator: NewValidator) -> None:
    """Where branch keys are made, each call that makes or opens one is tried under all context keys of a row."""
    kms = SmallKms()
    async with provider(stubbed(kms)) as aws:
        outcome = await new_validator(aws, logical_name="the-store").run()
    calls = [(action, parameters["EncryptionContext"]) for action, parameters in kms.asked if action != "DescribeKey"]
    rows = [(action, context) for action, context in calls if "tablename" in context]
    context = rows[0][1]
    assert ["GenerateDataKey", "Encrypt", "Decrypt"] == [action for action, _ in rows]
    assert [context] * 3 == [each for _, each in rows]
    assert context | {"branch-key-id": CONTEXT["tenantId"], "tablename": "the-store", "kms-arn": ARN} == context
    assert [*ALL[:-2], "branch_key_context", *ALL[-2:]] == [test.name for test in outcome.tests]
    assert outcome.passed


@pytest.mark.parametrize("action", ["GenerateDataKey", "Encrypt", "Decrypt"])
async def test_policy_that_denies_the_context_of_branch_keys_is_named(new_validator: NewValidator, action: str) -> None:
    """A condition of a policy on the encryption context is what to change, not the actions that it allows."""
    kms = SmallKms()

    async def conditional(asked: str, parameters: Mapping[str, Any]) -> Any:
        if asked == action and "tablename" in parameters["EncryptionContext"]:
            raise denial(action)
        return await kms(asked, parameters)

    async with provider(stubbed(conditional)) as aws:
        outcome = await new_validator(aws, logical_name="the-store").run()
    assert ["branch_key_context"] == list(failed(outcome))
    step, *others = outcome.recommendations
    assert (True, []) == (step.startswith("let conditions on kms:EncryptionContext pass"), others)
    for name in ("aws-crypto-ec:tenantId", "branch-key-id", "create-time", "hierarchy-version", "kms-arn", "tablename"):
        assert name in step


@pytest.mark.parametrize(
    ("metadata", "noted"), [({"action": "dynamodb:DeleteItem"}, True), ({}, False)], ids=["denied", "away"]
)
async def test_shredding_is_noted_where_it_is_denied(
    kms: Kms, store: SqliteStore, metadata: Mapping[str, str], noted: bool
) -> None:
    """Who shreds no tenant denies it on purpose; a store that is away is no such choice."""

    class BranchKeys:
        async def check_destroy(self) -> None:
            raise errors.StoreUnavailable("the reason", metadata=metadata)

    branch_keys: Any = BranchKeys()
    outcome = await Validator(kms.provider, store, branch_keys=branch_keys).run()
    assert noted == any("tenants cannot be shredded: the reason" in step for step in outcome.recommendations)


async def test_outcome_is_given_again_for_a_while(kms: Kms, clock: FakeClock, new_validator: NewValidator) -> None:
    """However often it is asked, KMS is called once in five seconds."""
    validator = new_validator(kms.provider)
    first = await validator.run()
    calls = kms.calls.copy()
    clock.now += 4.9
    assert (first, calls) == (await validator.run(), kms.calls)
    clock.now += 0.1
    assert first is not await validator.run()
    assert {action: 2 * count for action, count in calls.items()} == kms.calls


async def test_who_asks_at_once_shares_a_run(new_validator: NewValidator) -> None:
    """Many callers share one run, and one that goes away does not take it with it."""
    kms, asked, may_answer = SmallKms(), asyncio.Event(), asyncio.Event()

    async def wait(action: str, parameters: Mapping[str, Any]) -> Any:
        asked.set()
        await may_answer.wait()
        return await kms(action, parameters)

    async with provider(stubbed(wait)) as aws:
        validator = new_validator(aws)
        gone, *others = [asyncio.create_task(validator.run()) for _ in range(10)]
        await asked.wait()
        gone.cancel()
        may_answer.set()
        outcomes = await asyncio.gather(*others)
    assert ([outcomes[0]] * 9, 6) == (outcomes, len(kms.asked))
    assert outcomes[0].passed


async def test_stop_ends_a_run(new_validator: NewValidator) -> None:
    """A daemon that stops does not wait for a KMS that is silent."""
    asked = asyncio.Event()

    async def never(action: str, parameters: Mapping[str, Any]) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with provider(stubbed(never)) as aws:
        validator = new_validator(aws)
        caller = asyncio.create_task(validator.run())
        await asked.wait()
        await validator.close()
        with pytest.raises(asyncio.CancelledError):
            await caller


AFTER_DECRYPT = dict.fromkeys(ALL[4:7], "not run: decrypt failed")


@pytest.mark.parametrize(
    ("action", "name", "not_run"),
    [
        ("DescribeKey", "describe_key", {}),
        ("GenerateDataKey", "generate_data_key", {}),
        ("Encrypt", "encrypt", {}),
        ("Decrypt", "decrypt", AFTER_DECRYPT),
    ],
)
async def test_denied_action_is_named_with_key_and_principal(
    new_validator: NewValidator, action: str, name: str, not_run: Mapping[str, str]
) -> None:
    """Each of the four permissions is tried by itself, and one that lacks is told with whom to give it on what."""
    async with provider(stubbed(SmallKms({action: denial(action)}))) as aws:
        outcome = await new_validator(aws).run()
    problems = dict(failed(outcome))
    text = problems.pop(name)
    assert text.startswith(f"KMS denies kms:{action} on {ARN}")
    assert text.endswith(f"the daemon is {ROLE}")
    assert not_run == problems
    assert [f"allow kms:{action} on {ARN} to {ROLE} in the key policy and its IAM policy"] == outcome.recommendations


async def test_without_any_permission_all_four_are_named(new_validator: NewValidator) -> None:
    """What cannot be tried is not run, and says why."""
    actions = ("DescribeKey", "GenerateDataKey", "Encrypt", "Decrypt")
    async with provider(stubbed(SmallKms({action: denial(action) for action in actions}))) as aws:
        outcome = await new_validator(aws).run()
    reason = "not run: neither generate_data_key nor encrypt gave a key"
    assert dict.fromkeys(ALL[3:7], reason) == {name: failed(outcome)[name] for name in ALL[3:7]}
    assert [f"allow kms:{action}" for action in actions[:3]] == [
        " ".join(step.split()[:2]) for step in outcome.recommendations
    ]


@pytest.mark.parametrize(
    ("said", "principal"),
    [
        (f"User: {ROLE} is not authorized to perform: kms:Decrypt on resource: {ARN}", ROLE),
        ("The ciphertext refers to a customer master key that does not exist", None),
        ("User: nobody is not authorized", None),
        ("", None),
    ],
)
async def test_principal_of_a_denial_is_for_operators_only(said: str, principal: str | None) -> None:
    """Whom KMS took the daemon for is known, and neither message nor metadata shows it to a caller."""
    kms = SmallKms({"Decrypt": answer("AccessDeniedException", "Decrypt", said)})
    async with provider(stubbed(kms)) as aws:
        with pytest.raises(AccessDenied) as raised:
            await aws.unwrap(WrappedKey(b"blob", ARN), CONTEXT)
    error = raised.value
    assert principal == error.principal
    assert ROLE not in f"{error} {error!r} {error.message} {error.metadata}"


@pytest.mark.parametrize(
    ("cause", "endpoint", "step"),
    [
        (answer("ThrottlingException", "Encrypt"), None, "validate again in a minute"),
        (EndpointConnectionError(endpoint_url="x"), None, "open the way to KMS in us-east-1: DNS"),
        (EndpointConnectionError(endpoint_url="x"), "http://kms:4566", "start what should answer at http://kms:4566"),
        (NoCredentialsError(), None, "run aws sts get-caller-identity in the daemon's place"),
        (answer("NotFoundException", "Encrypt"), None, f"run aws kms describe-key --key-id {ARN} --region us-east-1"),
    ],
)
async def test_failing_call_has_its_step(
    new_validator: NewValidator, cause: BaseException, endpoint: str | None, step: str
) -> None:
    """A failure has the error's own message, and the next step of an operator once."""
    async with provider(stubbed(SmallKms({"Encrypt": cause})), endpoint=endpoint) as aws:
        outcome = await new_validator(aws).run()
    assert {"encrypt"} == set(failed(outcome))
    assert 1 == len([found for found in outcome.recommendations if found.startswith(step)])


async def test_silent_kms_is_told_once(new_validator: NewValidator) -> None:
    """An outage fails every call, and is one thing to mend."""
    failures = dict.fromkeys(("DescribeKey", "GenerateDataKey", "Encrypt"), EndpointConnectionError(endpoint_url="x"))
    async with provider(stubbed(SmallKms(failures))) as aws:
        outcome = await new_validator(aws).run()
    assert (set(ALL[:7]), 1) == (set(failed(outcome)), len(outcome.recommendations))


async def test_disabled_key_is_to_be_enabled(moto: MotoServer, kms_key: str, new_validator: NewValidator) -> None:
    """The command that enables the key is the one thing to do."""
    moto.kms().disable_key(kms_key)
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        outcome = await new_validator(aws).run()
    assert [f"run aws kms enable-key --key-id {kms_key}"] == outcome.recommendations
    assert f"{kms_key} is Disabled" in failed(outcome)["describe_key"]


async def test_key_that_waits_for_its_deletion_is_to_be_kept(
    moto: MotoServer, kms_key: str, new_validator: NewValidator
) -> None:
    """A cancelled deletion leaves a key disabled, so both commands are named."""
    moto.kms().schedule_key_deletion(kms_key, 7)
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        outcome = await new_validator(aws).run()
    named = f"--key-id {kms_key}"
    step = f"run aws kms cancel-key-deletion {named}, and then aws kms enable-key {named}"
    assert [step] == outcome.recommendations


class Careless(LocalProvider):
    """A provider that does not look at the encryption context."""

    async def wrap(self, key: KeyMaterial, context: Mapping[str, str]) -> WrappedKey:
        return await super().wrap(key, {})

    async def generate_data_key(self, number_of_bytes: int, context: Mapping[str, str]) -> Any:
        return await super().generate_data_key(number_of_bytes, {})

    async def unwrap(self, wrapped: WrappedKey, context: Mapping[str, str]) -> KeyMaterial:
        return await super().unwrap(wrapped, {})


class Forgetful(LocalProvider):
    """A provider that unwraps another key than it wrapped."""

    async def unwrap(self, wrapped: WrappedKey, context: Mapping[str, str]) -> KeyMaterial:
        await super().unwrap(wrapped, context)
        return KeyMaterial(os.urandom(32))


class Losing(LocalProvider):
    """A provider that opens nothing."""

    async def unwrap(self, wrapped: WrappedKey, context: Mapping[str, str]) -> KeyMaterial:
        raise errors.DoesNotOpen


class Defective(LocalProvider):
    """A provider with a defect."""

    async def wrap(self, key: KeyMaterial, context: Mapping[str, str]) -> WrappedKey:
        raise RuntimeError("secret detail")


async def test_kms_that_ignores_contexts_fails(new_validator: NewValidator) -> None:
    """A KMS that opens a key under another context would not keep tenants apart, and does not pass."""
    outcome = await new_validator(Careless(bytes(32))).run()
    assert {"wrong_context"} == set(failed(outcome))
    assert "would not keep tenants apart" in failed(outcome)["wrong_context"]


@pytest.mark.parametrize("kind", [Forgetful, Losing])
async def test_kms_that_does_not_give_back_the_key_fails(
    new_validator: NewValidator, kind: type[LocalProvider]
) -> None:
    """It is not enough that Decrypt answers: it must open what was wrapped, and give that very key."""
    outcome = await new_validator(kind(bytes(32))).run()
    problems = dict(failed(outcome))
    assert problems.pop("decrypt")
    assert (AFTER_DECRYPT, False) == (problems, READY in outcome.recommendations)


async def test_defect_fails_its_test_only(new_validator: NewValidator, caplog: pytest.LogCaptureFixture) -> None:
    """A defect does not show itself, is logged with its traceback, and the other tests still run."""
    outcome = await new_validator(Defective(bytes(32))).run()
    assert {"encrypt": "internal error"} == failed(outcome)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "secret detail" not in str(outcome)


async def test_slow_kms_passes_with_advice(new_validator: NewValidator, clock: FakeClock) -> None:
    """Slower than the target is no failure; the test says so, and one recommendation tells what to do about all."""
    kms = SmallKms()

    async def slow(action: str, parameters: Mapping[str, Any]) -> Any:
        clock.now += 0.125
        return await kms(action, parameters)

    async with provider(stubbed(slow)) as aws:
        outcome = await new_validator(aws).run()
    assert {} == failed(outcome)
    late = {test.name for test in outcome.tests if test.message == "slower than the target of 100 ms"}
    assert {*ALL[:4], "key_retrieval_cache_miss"} == late
    assert [(125.0, 0.0)] == [(outcome.tests[5].latency_ms, outcome.tests[6].latency_ms)]
    (step,) = outcome.recommendations
    assert "the Region of the key (us-east-1)" in step
    assert "com.amazonaws.us-east-1.kms" in step


async def test_cache_hit_does_not_ask_kms(new_validator: NewValidator) -> None:
    """The second retrieval is a hit, so a KMS that fails from then on is not noticed."""
    kms = SmallKms()
    async with provider(stubbed(kms)) as aws:
        await new_validator(aws).run()
    assert ["DescribeKey", "GenerateDataKey", "Encrypt", "Decrypt", "Decrypt", "Decrypt"] == [
        action for action, _ in kms.asked
    ]


@pytest.mark.parametrize("spoil", ["PRAGMA query_only=ON", "PRAGMA synchronous=NORMAL"])
async def test_store_that_would_not_keep_a_key_fails(
    store: SqliteStore, new_validator: NewValidator, spoil: str
) -> None:
    """A store that cannot be written, or whose commits are not durable, does not pass."""
    await store._database.execute_fetchall(spoil)
    outcome = await new_validator(LocalProvider(bytes(32))).run()
    assert {"key_store"} == set(failed(outcome))
    assert any("the volume of kms.data-dir" in step for step in outcome.recommendations)


async def test_store_whose_file_is_gone_fails(store: SqliteStore, database: Path, new_validator: NewValidator) -> None:
    """A key that is written into a deleted file is lost, so that is no store to pass."""
    os.unlink(database)
    outcome = await new_validator(LocalProvider(bytes(32))).run()
    assert {"key_store"} == set(failed(outcome))


class Skewed(LocalProvider):
    """A provider that knows how far our clock is ahead."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__(bytes(32))
        self.clock_skew_seconds = seconds  # type: ignore[assignment]  # None for all local ones


@pytest.mark.parametrize(
    ("seconds", "passed", "text"),
    [
        (None, True, "not known"),
        (60.0, True, ""),
        (-60.0, True, ""),
        (61.0, False, "this machine's clock is 61 s ahead of KMS's"),
        (-400.0, False, "this machine's clock is 400 s behind KMS's"),
    ],
)
async def test_clock_that_is_off_fails_before_aws_refuses(
    new_validator: NewValidator, seconds: float | None, passed: bool, text: str
) -> None:
    """More than a minute off fails, while AWS still takes five."""
    outcome = await new_validator(Skewed(seconds)).run()
    assert (passed, text) == (outcome.passed, message(outcome, "clock_skew"))
    assert passed is not any("synchronise this machine's clock" in step for step in outcome.recommendations)


async def test_what_must_not_be_so_in_production_is_a_note(new_validator: NewValidator) -> None:
    """What is fine in a trial passes, and is told for the day it goes to production."""
    deployment = [Finding("volume", "mount a volume"), Finding("callers"), Finding("user", "run it as another user")]
    async with provider(stubbed(SmallKms())) as aws:
        outcome = await new_validator(aws, deployment=deployment).run()
    assert {} == failed(outcome)
    assert ["mount a volume", "run it as another user"] == outcome.recommendations
    assert "; ".join(outcome.recommendations) == message(outcome, "configuration")


def leaves() -> Sequence[type[KmsError]]:
    """Return our errors."""
    return [kind for kind in KmsError.__subclasses__() if kind.__module__ == KmsError.__module__]


def test_every_error_of_a_provider_or_a_store_has_its_step() -> None:
    """An error that is added has a step, or is listed here as one that validation cannot meet."""
    others = {
        errors.InvalidRequest,
        errors.NoSigningKey,
        errors.NoBranchKeyStore,
        errors.KeyDamaged,
        errors.BudgetExceeded,
        errors.QuotaExceeded,
        errors.Locked,
        errors.AuditUnavailable,
        errors.Stopping,
        errors.Unauthenticated,
        errors.CallerNotAllowed,
        errors.TenantPendingShred,
        errors.TenantShredded,
    }
    for of_provider in (aws_remedies, azure_remedies, gcp_remedies, vault_remedies, pkcs11_remedies):
        assert set(leaves()) - others == set(REMEDIES) | set(of_provider.REMEDIES)


async def test_production_has_tests_of_its_own(store: SqliteStore) -> None:
    """A finding is a test that fails with its sentence, which is also what to do; without one, all is ready."""
    local = LocalProvider(bytes(32))
    good = [Finding("callers"), Finding("volume")]
    for deployment in (good, [Finding("callers", "give them a token"), *good[1:]]):
        validator = Validator(local, store, deployment=deployment)
        assert (await validator.run()).passed
        outcome = await validator.run(production=True)
        problems = [finding.problem for finding in deployment if finding.problem]
        assert (not problems, problems or [READY]) == (outcome.passed, outcome.recommendations)
        assert [
            Test("production_callers", not problems, message="; ".join(problems)),
            Test("production_volume", True),
            Test("production_serving", True),
        ] == outcome.tests[len(ALL) :]


async def test_a_daemon_that_does_not_serve_is_not_ready(store: SqliteStore) -> None:
    """Every permission may be there, and an emergency stop in force."""
    outcome = await Validator(LocalProvider(bytes(32)), store, serving=lambda: False).run(True)
    assert {"production_serving": "the daemon does not take calls: betrace-kms status says why"} == failed(outcome)


async def test_what_cannot_be_found_out_is_not_ready(store: SqliteStore) -> None:
    """An adapter that cannot be asked fails its test, and says why; the others are still asked."""

    class Silent(LocalProvider):
        async def inspect(self) -> Sequence[Finding]:
            raise errors.KmsUnreachable("no answer")

    outcome = await Validator(Silent(bytes(32)), store).run(production=True)
    assert {"production_kms": "not known: no answer"} == failed(outcome)
    assert outcome.recommendations == ["not known: no answer"]


async def test_production_runs_are_shared_as_well(kms: Kms, clock: FakeClock, new_validator: NewValidator) -> None:
    """Both kinds have one outcome for five seconds, and the one for production begins with the other."""
    validator = new_validator(kms.provider)
    first, general = await validator.run(production=True), await validator.run()
    calls = kms.calls.copy()
    assert first is await validator.run(production=True)
    assert (general.tests, calls) == (first.tests[: len(ALL)], kms.calls)


def test_other_errors_lead_to_the_manual() -> None:
    """An error without a step of its own still tells where to read on."""
    step = remedy(errors.KeyDamaged("damaged"), LocalProvider(bytes(32)))
    assert "see docs/troubleshooting.md#key_damaged" == step


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ("Disabled", "enable-key"),
        ("PendingDeletion", "cancel-key-deletion"),
        ("PendingReplicaDeletion", "cancel-key-deletion"),
        ("PendingImport", "import-key-material"),
        ("Unavailable", "connect-custom-key-store"),
        ("Creating", "describe-key"),
        (None, "describe-key"),
    ],
)
def test_step_follows_the_state_and_not_the_words(state: str | None, step: str) -> None:
    """The text of an error may change, and may hold the words of another state."""
    error = errors.MasterKeyUnusable("the key is Disabled: is PendingDeletion:", state=state)
    assert step in (aws_remedies.remedy(error, ARN, None) or "")


@pytest.mark.parametrize(
    ("place", "step"), [("volume", "kms.data-dir"), ("table", "kms.store.table"), ("process", "ulimit -n")]
)
def test_step_of_a_store_follows_the_place(place: errors.Place, step: str) -> None:
    """A table is no volume, and a lack of file descriptors is neither."""
    assert step in remedy(errors.StoreUnavailable("DynamoDB", place=place), LocalProvider(bytes(32)))


@pytest.mark.parametrize(
    ("arn", "service"),
    [
        ("arn:aws:kms:us-east-1:123456789012:key/a", "com.amazonaws.us-east-1.kms"),
        ("arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/a", "com.amazonaws.us-gov-west-1.kms"),
        ("arn:aws-cn:kms:cn-north-1:123456789012:key/a", "cn.com.amazonaws.cn-north-1.kms"),
        ("arn:aws-eusc:kms:eusc-de-east-1:123456789012:key/a", "of KMS in eusc-de-east-1"),
        ("alias/betrace", "of KMS in aws.kms.region"),
    ],
)
def test_endpoint_service_is_named_for_its_partition(arn: str, service: str) -> None:
    """Where the name is not known for certain, none is invented."""
    assert service == aws_remedies.endpoint_service(arn)
