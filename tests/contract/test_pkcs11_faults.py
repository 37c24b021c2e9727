"""Provider pkcs11 over a library that hangs, crashes and lies: what each call says, and how the daemon goes on."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.providers.breaker import CircuitBreaker
from betrace_kms_server.providers.pkcs11 import processes
from betrace_kms_server.providers.pkcs11.errors import UNFIT
from betrace_kms_server.providers.pkcs11.process import Process
from betrace_kms_server.providers.pkcs11.provider import Pkcs11Provider

from tests.contract.doubles import FakeClock
from tests.contract.pkcs11_peer import Faults, faulty, pkcs11_provider
from tests.softhsm import Token, build_faults

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}


@pytest.fixture
def token(hsm_token: Token) -> Token:
    """Give the token that no test breaks."""
    return hsm_token


@pytest.fixture
def key(hsm_keys: tuple[str, str]) -> str:
    """Give the label of a master key."""
    return hsm_keys[0]


async def round_trip(provider: Pkcs11Provider) -> None:
    """Make a key and unwrap it."""
    made = await provider.generate_data_key(32, CONTEXT)
    assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that misbehaves."""
    return build_faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faults(faulty_library: Path, token: Token, tmp_path: Path) -> Iterator[Faults]:
    """Give a library that does what a test says, in front of SoftHSM."""
    with faulty(faulty_library, token.module, tmp_path) as faults:
        yield faults


@pytest.mark.parametrize(
    ("fault", "problem"),
    [("flags 0x20000", "locks the PIN at the next wrong one"), ("flags 0x40000", "has locked the PIN")],
)
async def test_the_last_try_of_a_pin_is_not_the_daemons(
    fault: str, problem: str, token: Token, key: str, faults: Faults
) -> None:
    """The token says that it would lock, or that it has."""
    faults.say(fault)
    async with pkcs11_provider(token, key, module=faults.module) as provider:
        with pytest.raises(CredentialsUnavailable, match=problem):
            await provider.check()


async def test_a_session_that_went_away_is_opened_again(token: Token, key: str, faults: Faults) -> None:
    """The call that met it is made once more; if that does not help, it says so."""
    async with pkcs11_provider(token, key, module=faults.module) as provider:
        await round_trip(provider)
        faults.say("fail C_Encrypt 0xb3")
        with pytest.raises(KmsUnreachable, match=rf"session on token {token.label} is gone \(SessionHandleInvalid\)"):
            await provider.generate_data_key(32, CONTEXT)
        assert {"OK": 2} == provider.credential_attempts
        faults.say()
        await round_trip(provider)


async def test_a_library_that_hangs_is_given_up_in_time(token: Token, key: str, faults: Faults) -> None:
    """Its process is killed, the event loop runs on meanwhile, and the next call has another process."""
    async with pkcs11_provider(token, key, module=faults.module) as provider:
        await round_trip(provider)
        (process,) = provider._processes._idle
        provider._processes._call_seconds = 0.3
        faults.say("hang C_Encrypt")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(KmsUnreachable, match="no answer from the PKCS#11 library in time"):
            await provider.generate_data_key(32, CONTEXT)
        ticking.cancel()
        assert ticks > 5
        assert -signal.SIGKILL == await process._child.wait()
        faults.say()
        provider._processes._call_seconds = 20
        await round_trip(provider)


async def test_a_library_that_hangs_at_its_start_is_given_up_in_time(
    token: Token, key: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for those who wait until it is their turn to log in."""
    monkeypatch.setattr(processes, "OPEN_SECONDS", 0.5)
    faults.say("hang C_Initialize")
    async with pkcs11_provider(token, key, module=faults.module, size=2) as provider:
        calls = [provider.check(), *(provider.generate_data_key(32, {"tenantId": name}) for name in ("a", "b"))]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [{"kind": "timeout"}] * 3 == [getattr(each, "metadata", each) for each in outcomes]
        faults.say()
        monkeypatch.setattr(processes, "OPEN_SECONDS", 20)
        await round_trip(provider)


async def test_a_library_that_crashes_takes_no_daemon_with_it(token: Token, key: str, faults: Faults) -> None:
    """The call fails by name, the next one has another process."""
    async with pkcs11_provider(token, key, module=faults.module) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
        faults.say("crash C_Decrypt")
        with pytest.raises(
            KmsUnreachable, match=r"the PKCS#11 library crashed \(SIGSEGV\): the next call starts another"
        ):
            await provider.unwrap(made.wrapped, CONTEXT)
        faults.say()
        assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw


async def test_a_process_ends_with_the_daemon_while_the_library_hangs(token: Token, faults: Faults) -> None:
    """Nothing is left behind that holds a session."""
    faults.say("hang C_Initialize")
    process = await Process.start()
    given = {"do": "open", "module": str(faults.module), "token": token.label, "pin": "none", "token_iv": False}
    hanging = asyncio.create_task(process.ask(given))
    await asyncio.sleep(0)
    process._writer.write_eof()
    assert 0 == await process._child.wait()
    with pytest.raises(Exception, match="exit code 0"):
        await hanging
    await process.end()


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("fail C_OpenSession 0xb1", Throttled, "no room for another session"),
        ("fail C_Initialize 0x5", KmsUnreachable, "fails at DescribeKey with GeneralError: check the HSM"),
        ("fail C_Login 0xa3", CredentialsUnavailable, "says that the PIN is expired"),
        ("fail C_Login 0x102", CredentialsUnavailable, "has no PIN for its user"),
        ("fail C_Encrypt 0x70", MasterKeyUnusable, r"refuses our AES-GCM \(MechanismInvalid\): try pkcs11.iv=token"),
        ("gcm", MasterKeyUnusable, r"refuses our AES-GCM \(NoAesGcm\)"),
        ("fail C_Encrypt 0x80000123", KmsUnreachable, "fails at DescribeKey with 0x80000123"),
        ("fail C_Encrypt 0x68", KmsError, "does not permit C_Encrypt with .*: set CKA_ENCRYPT and CKA_DECRYPT"),
    ],
)
async def test_what_a_library_may_return(
    fault: str, error: type[KmsError], words: str, token: Token, key: str, faults: Faults
) -> None:
    """Each has its error and its next step."""
    faults.say(fault)
    async with pkcs11_provider(token, key, module=faults.module) as provider:
        with pytest.raises(error, match=words):
            await provider.check()


@pytest.mark.parametrize(
    ("fault", "token_iv", "problem"),
    [
        ("iv", True, None),
        ("iv", False, "refuses our AES-GCM"),
        ("", True, "returns no IV"),
        ("aad", False, "does not authenticate the context"),
    ],
)
async def test_a_token_that_makes_the_ivs(
    fault: str, token_iv: bool, problem: str | None, token: Token, key: str, faults: Faults
) -> None:
    """Where it must and does, it is used; a token that takes IVs and authenticates no context is refused."""
    faults.say(fault)
    async with pkcs11_provider(token, key, module=faults.module, token_iv=token_iv) as provider:
        if problem:
            with pytest.raises(MasterKeyUnusable, match=problem) as caught:
                await provider.check()
            assert UNFIT == caught.value.state
            return
        await provider.check()
        made = [await provider.generate_data_key(32, CONTEXT) for _ in range(3)]
        ivs = {each.wrapped.blob[4:16] for each in made}
        assert (3, False) == (len(ivs), bytes(12) in ivs)
        assert made[0].material.raw == (await provider.unwrap(made[0].wrapped, CONTEXT)).raw


async def test_a_token_out_of_order_is_no_bad_ciphertext(token: Token, key: str, faults: Faults) -> None:
    """SoftHSM returns CKR_GENERAL_ERROR for a wrong tag: a trial tells it from a token that does not decrypt at all."""
    async with pkcs11_provider(token, key, module=faults.module) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(made.wrapped, {"tenantId": "evil"})
        assert {"OK": 1} == provider.credential_attempts
        faults.say("fail C_Decrypt 0x5")
        with pytest.raises(KmsUnreachable, match="fails at Decrypt with GeneralError"):
            await provider.unwrap(made.wrapped, CONTEXT)
        faults.say("fail C_Decrypt 0x40")
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(made.wrapped, CONTEXT)


async def test_an_outage_opens_the_breaker_and_a_check_still_asks(token: Token, key: str, faults: Faults) -> None:
    """Two calls fail, the next is not made; when the HSM is back, so are the keys."""
    clock = FakeClock()
    breaker = CircuitBreaker("pkcs11", window=2, clock=clock)
    async with pkcs11_provider(token, key, module=faults.module, breaker=breaker) as provider:
        faults.say("fail C_Encrypt 0x32")
        for _ in range(2):
            with pytest.raises(KmsUnreachable, match="DeviceRemoved"):
                await provider.generate_data_key(32, CONTEXT)
        with pytest.raises(KmsUnreachable, match="left alone for a few seconds"):
            await provider.generate_data_key(32, CONTEXT)
        assert "open" == provider.breakers["pkcs11"]
        faults.say()
        await provider.check()
        clock.now += 6
        await round_trip(provider)


async def test_data_keys_of_the_tokens_generator(token: Token, key: str, faults: Faults) -> None:
    """With pkcs11.random=token they come from there, and a token without a generator says what to set."""
    async with pkcs11_provider(token, key, module=faults.module, random_of_token=True) as provider:
        await round_trip(provider)
        faults.say("fail C_GenerateRandom 0x121")
        with pytest.raises(MasterKeyUnusable, match=r"without a generator: set pkcs11\.random=os"):
            await provider.generate_data_key(32, CONTEXT)


async def test_a_process_that_cannot_be_opened_is_not_tried_at_once(token: Token, key: str, faults: Faults) -> None:
    """To start one takes CPU: callers who come again and again get the same answer for a second."""
    faults.say("fail C_OpenSession 0x30")
    async with pkcs11_provider(token, key, module=faults.module, retry_seconds=60) as provider:
        for _ in range(3):
            with pytest.raises(KmsUnreachable, match="fails at DescribeKey with DeviceError"):
                await provider.check()
        assert {"KMS_UNREACHABLE": 1} == provider.credential_attempts
