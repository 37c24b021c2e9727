"""Provider pkcs11 with SoftHSM, and a library that hangs, crashes and lies: what it refuses, and how it goes on."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    StartRefused,
    Throttled,
)
from betrace_kms_server.core.key_event import unobserved
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.providers.breaker import CircuitBreaker
from betrace_kms_server.providers.pkcs11 import processes
from betrace_kms_server.providers.pkcs11.errors import UNFIT
from betrace_kms_server.providers.pkcs11.keys import HsmKey
from betrace_kms_server.providers.pkcs11.opening import open_pkcs11
from betrace_kms_server.providers.pkcs11.process import Process
from betrace_kms_server.providers.pkcs11.processes import Module, Processes
from betrace_kms_server.providers.pkcs11.provider import Pkcs11Provider
from betrace_kms_server.providers.pkcs11.wraps import WrapCount

from tests.contract.doubles import FakeClock
from tests.contract.pkcs11_peer import Faults, KeptProcesses, faulty, pkcs11_provider
from tests.interop.tools import ROOT
from tests.softhsm import MASTER_KEY, SoftHsm, Token, build_faults

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that misbehaves."""
    return build_faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faults(faulty_library: Path, token: Token, tmp_path: Path) -> Iterator[Faults]:
    """Give a library that does what a test says, in front of SoftHSM."""
    with faulty(faulty_library, token.module, tmp_path) as faults:
        yield faults


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


async def refusal(found: Token, key: str, folder: Path, **module: Any) -> str:
    """Return why a daemon with that key does not start, or "" if it does."""
    given: dict[str, Any] = {"path": found.module, "token": found.label, "pin_file": found.pin_file}
    library = Module(**(given | module))
    name = HsmKey(library.token, key)
    wraps = WrapCount(folder / "wraps", name.name, limit=2**32)
    kind = KeptProcesses if not module else Processes
    opened = open_pkcs11(
        name,
        [],
        kind(library, size=1, call_seconds=20),
        wraps,
        calls_at_once=1,
        random_of_token=False,
        observe=unobserved,
    )
    try:
        async with opened:
            return ""
    except StartRefused as refused:
        return str(refused)


def imported(token: Token, label: str, folder: Path) -> None:
    """Write a key that was made outside of the token."""
    content = folder / "key"
    content.write_bytes(bytes(range(32)))
    attributes = ("--type", "secrkey", "--key-type", "AES:32", "--sensitive", "--private", "--usage-decrypt")
    token.run("--write-object", str(content), *attributes, "--label", label)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--key-type", "AES:32", "--private", "--usage-decrypt"), "may be read in plaintext"),
        ((*MASTER_KEY, "--extractable"), "may leave the token"),
        (("--key-type", "GENERIC:32", "--sensitive", "--private", "--usage-sign"), "is of type GENERIC_SECRET"),
        (None, "could leave the token once, or was made outside of it|was readable in plaintext once"),
    ],
)
async def test_refused_unfit_key(options: tuple[str, ...] | None, problem: str, token: Token, tmp_path: Path) -> None:
    """With such a key nothing could ever be safe: the daemon does not start, and a check says why."""
    key = f"unfit-{tmp_path.name[-20:]}"
    if options is None:
        imported(token, key, tmp_path)
    else:
        token.make_key(key, *options)
    async with pkcs11_provider(token, key, processes=KeptProcesses) as provider:
        with pytest.raises(MasterKeyUnusable, match=problem) as caught:
            await provider.check()
        assert UNFIT == caught.value.state
    assert caught.value.message == await refusal(token, key, tmp_path)


async def test_refused_label_of_several_keys(token: Token, tmp_path: Path) -> None:
    """Until the id says which: then its name has it."""
    for id_ in ("01", "a2"):
        token.run("--keygen", *MASTER_KEY, "--label", "twice", "--id", id_)
    assert "is the name of several keys: give them labels of their own, or set pkcs11.key-id" in await refusal(
        token, "twice", tmp_path
    )
    async with pkcs11_provider(token, "another", formers=["twice;id=A2"], processes=KeptProcesses) as provider:
        _, former = provider.decrypt_key_arns
        assert f"pkcs11:token={token.label};object=twice;id=%A2" == former
        await provider.check(former)


async def test_refused_public_key(token: Token, tmp_path: Path) -> None:
    """A pair of keys is no secret key."""
    token.run("--keypairgen", "--key-type", "EC:prime256v1", "--label", "pair")
    assert "object=pair is no AES key" in await refusal(token, "pair", tmp_path)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/nowhere/libhsm.so", "No such file or directory"),
        ("/dev/null", "file too short|invalid ELF header"),
        (os.path.realpath("/proc/self/exe"), "C_GetFunctionList|cannot dynamically load"),
    ],
)
async def test_refused_library(path: str, problem: str, token: Token, key: str, tmp_path: Path) -> None:
    """What cannot be loaded, and what is no PKCS#11 library."""
    refused = await refusal(token, key, tmp_path, path=Path(path))
    assert "pkcs11.module is no PKCS#11 library that can be loaded" in refused
    assert any(part in refused for part in problem.split("|")), refused


async def test_a_token_that_is_not_there_may_come(hsm: SoftHsm, token: Token, key: str, tmp_path: Path) -> None:
    """The daemon starts, and says which tokens there are."""
    assert "" == await refusal(token, key, tmp_path, token="absent")
    library = Module(token.module, "absent", token.pin_file)
    async with Processes(library, size=1, call_seconds=20) as opened:
        provider = Pkcs11Provider(
            HsmKey("absent", key), [], opened, WrapCount(tmp_path, "any", limit=1), calls_at_once=1
        )
        with pytest.raises(
            KmsUnreachable, match=f"no token absent, it has .*{token.label}.*: check pkcs11.token-label"
        ):
            await provider.check()


async def test_refused_label_of_two_tokens(hsm: SoftHsm, tmp_path: Path) -> None:
    """Which one is meant cannot be known."""
    first, second = hsm.make_token("twins"), hsm.make_token("twins")
    try:
        assert "is on one of several tokens of that label" in await refusal(
            first, "any", tmp_path, pin_file=first.pin_file
        )
    finally:
        second.folder.rename(tmp_path / "gone")


async def test_a_missing_key_is_named(token: Token, tmp_path: Path) -> None:
    """It may be made later, so the daemon starts."""
    async with pkcs11_provider(token, "absent", processes=KeptProcesses) as provider:
        with pytest.raises(
            MasterKeyUnusable, match=r"has no key pkcs11:token=.*;object=absent: check pkcs11\.key-label"
        ):
            await provider.check()
        with pytest.raises(MasterKeyUnusable) as caught:
            await provider.generate_data_key(32, CONTEXT)
        assert ("NotFound", False) == (caught.value.state, caught.value.withdrawn)
    assert "" == await refusal(token, "absent", tmp_path)


async def test_a_wrong_pin_is_tried_once(hsm: SoftHsm, tmp_path: Path) -> None:
    """Tokens lock after a few tries; whatever asks, the same PIN is not tried again, and another one is."""
    token = hsm.make_token()
    key, right = token.make_key(), token.pin_file.read_text()
    token.pin_file.write_text("wrong-pin\n")
    async with pkcs11_provider(token, key) as provider:
        for _ in range(2):
            with pytest.raises(CredentialsUnavailable, match=r"refused the PIN, .*: write the right one to") as caught:
                await provider.check()
            with pytest.raises(CredentialsUnavailable, match="refused the PIN"):
                await provider.generate_data_key(32, CONTEXT)
        assert "wrong-pin" not in f"{caught.value!r} {caught.value.__cause__!r}"
        assert {"KMS_CREDENTIALS_UNAVAILABLE": 1} == provider.credential_attempts
        token.pin_file.write_text(right)
        await provider.check()
        assert {"KMS_CREDENTIALS_UNAVAILABLE": 1, "OK": 1} == provider.credential_attempts
    token.pin_file.write_text("wrong-pin\n")
    assert "" == await refusal(token, key, tmp_path, pin_file=token.pin_file)


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("", 0o600, "holds no PIN"),
        ("one\ntwo\n", 0o600, "holds no PIN"),
        ("s3cret", 0o644, "is open to others"),
        (None, 0o600, "cannot be read"),
        ("\udcff", 0o600, "is not UTF-8"),
    ],
    ids=["empty", "two lines", "open", "missing", "binary"],
)
async def test_refused_pin_files(content: str | None, mode: int, problem: str, tmp_path: Path, token: Token) -> None:
    """The message has what to fix, and nothing of the PIN."""
    path = tmp_path / "pin"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
        path.chmod(mode)
    async with pkcs11_provider(token, "any", pin_file=path) as provider:
        with pytest.raises(CredentialsUnavailable, match=problem) as caught:
            await provider.check()
        assert "s3cret" not in str(caught.value)
        assert {} == provider.credential_attempts


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


async def test_a_token_that_goes_and_comes(hsm: SoftHsm, tmp_path: Path) -> None:
    """While it is away, each call says so; when it is back, the daemon logs in without a restart."""
    token = hsm.make_token()
    async with pkcs11_provider(token, token.make_key()) as provider:
        await provider.check()
        made = await provider.generate_data_key(32, CONTEXT)
        away = token.folder.rename(tmp_path / "away")
        with pytest.raises(KmsUnreachable):
            await provider.check()
        with pytest.raises(KmsUnreachable, match=f"has no token {token.label}"):
            await provider.unwrap(made.wrapped, CONTEXT)
        away.rename(token.folder)
        assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw
        await provider.check()


async def test_a_process_that_is_killed_is_replaced(token: Token, key: str) -> None:
    """The next call finds that out, and does not fail."""
    async with pkcs11_provider(token, key) as provider:
        await round_trip(provider)
        (process,) = provider._processes._idle
        os.kill(process.pid, signal.SIGKILL)
        await process._child.wait()
        await round_trip(provider)
        assert {"OK": 2} == provider.credential_attempts


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


async def test_several_processes_serve_at_a_time(token: Token, key: str) -> None:
    """As many as are configured, each with a session, and no more."""
    async with pkcs11_provider(token, key, size=3) as provider:
        made = await asyncio.gather(
            *(provider.generate_data_key(32, {"tenantId": f"t{number % 4}"}) for number in range(40))
        )
        assert 40 == len({each.wrapped.blob for each in made})
        assert 1 < provider.credential_attempts["OK"] <= 3


async def test_a_former_key_unwraps_and_wraps_nothing(token: Token, hsm_keys: tuple[str, str]) -> None:
    """The way to rotate: another label, and the former one listed."""
    first, second = hsm_keys
    async with pkcs11_provider(token, first, processes=KeptProcesses) as before:
        wrapped = await before.wrap(KeyMaterial(b"key"), CONTEXT)
    async with pkcs11_provider(token, second, formers=[first], processes=KeptProcesses) as after:
        assert b"key" == bytes((await after.unwrap(wrapped, CONTEXT)).raw)
        again = await after.wrap(KeyMaterial(b"key"), CONTEXT)
        assert f"pkcs11:token={token.label};object={second}" == again.master_key_arn == after.master_key_arn
        assert not after.is_current(wrapped.master_key_arn)
        for arn in after.decrypt_key_arns:
            await after.check(arn)


@pytest.mark.parametrize("junk", [b"", b"bth1", b"bth1" + bytes(28), b"bth1" + bytes(29), b"btl1" + bytes(60)])
async def test_what_an_hsm_never_wrapped_does_not_open(junk: bytes, token: Token, key: str) -> None:
    """One text, whatever is wrong with it."""
    async with pkcs11_provider(token, key, processes=KeptProcesses) as provider:
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(WrappedKey(junk, provider.master_key_arn), CONTEXT)


async def test_data_keys_of_the_tokens_generator(token: Token, key: str, faults: Faults) -> None:
    """With pkcs11.random=token they come from there, and a token without a generator says what to set."""
    async with pkcs11_provider(token, key, module=faults.module, random_of_token=True) as provider:
        await round_trip(provider)
        faults.say("fail C_GenerateRandom 0x121")
        with pytest.raises(MasterKeyUnusable, match=r"without a generator: set pkcs11\.random=os"):
            await provider.generate_data_key(32, CONTEXT)


async def test_a_key_that_wrapped_enough_only_unwraps(token: Token, key: str) -> None:
    """The bound of AES-GCM with random IVs; the trial of a check is one of them."""
    async with pkcs11_provider(token, key, limit=3, processes=KeptProcesses) as provider:
        await provider.check()
        made = [await provider.generate_data_key(32, CONTEXT) for _ in range(2)]
        with pytest.raises(MasterKeyUnusable, match=r"list this one in pkcs11\.former-key-labels") as caught:
            await provider.generate_data_key(32, CONTEXT)
        assert "Exhausted" == caught.value.state
        assert made[0].material.raw == (await provider.unwrap(made[0].wrapped, CONTEXT)).raw
        await provider.check()
        _, wraps = await provider.inspect()
        assert "has used 100% of pkcs11.max-wraps" in wraps.problem


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (MASTER_KEY, ""),
        (("--key-type", "AES:32", "--sensitive", "--usage-decrypt"), "can be used without the PIN"),
    ],
)
async def test_production_check_finds_a_key_without_a_pin(options: tuple[str, ...], problem: str, token: Token) -> None:
    """The key of the documents passes."""
    async with pkcs11_provider(token, token.make_key("", *options), processes=KeptProcesses) as provider:
        key, wraps = await provider.inspect()
    assert ("pkcs11_key", "pkcs11_wraps", "") == (key.name, wraps.name, wraps.problem)
    assert problem in key.problem
    assert bool(problem) == bool(key.problem)


async def test_the_pin_is_in_no_argument(token: Token, key: str) -> None:
    """Others of the machine could read it there."""
    async with pkcs11_provider(token, key) as provider:
        await provider.check()
        (process,) = provider._processes._idle
        arguments = await asyncio.to_thread(Path(f"/proc/{process.pid}/cmdline").read_text)
    assert "pkcs11.worker" in arguments
    assert token.pin not in arguments


def test_the_documents_make_this_key() -> None:
    """The command of docs/providers/pkcs11.md has the options that these tests make keys with."""
    text = (ROOT / "docs/providers/pkcs11.md").read_text("utf-8")
    assert f"--keygen {' '.join(MASTER_KEY)} --label betrace-1" in text
