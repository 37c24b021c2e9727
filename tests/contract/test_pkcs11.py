"""Provider pkcs11 with SoftHSM: what it refuses, what each refusal says, and how it outlives its token."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    DoesNotOpen,
    KmsUnreachable,
    MasterKeyUnusable,
    StartRefused,
)
from betrace_kms_server.core.key_event import unobserved
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.providers.pkcs11 import opening
from betrace_kms_server.providers.pkcs11.errors import UNFIT
from betrace_kms_server.providers.pkcs11.keys import HsmKey
from betrace_kms_server.providers.pkcs11.opening import open_pkcs11
from betrace_kms_server.providers.pkcs11.processes import Module, Processes
from betrace_kms_server.providers.pkcs11.provider import Pkcs11Provider
from betrace_kms_server.providers.pkcs11.wraps import WrapCount

from tests.contract.pkcs11_peer import KeptProcesses, pkcs11_provider
from tests.interop.tools import ROOT
from tests.softhsm import MASTER_KEY, SoftHsm, Token

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


async def test_refused_without_the_extra(
    token: Token, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon says what to install."""
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    assert "python-pkcs11 is missing: install betrace-kms[pkcs11]" in await refusal(token, key, tmp_path)


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
