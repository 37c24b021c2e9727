"""Provider pkcs11 without an HSM: names of keys, what faults mean, which keys are fit, and the count of wraps."""

from collections.abc import Mapping
from pathlib import Path

import pkcs11
import pytest
from betrace_kms_server.config.sources import Source, resolve
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    StartRefused,
    StoreUnavailable,
)
from betrace_kms_server.core.master_keys import provider_of
from betrace_kms_server.providers.pkcs11.errors import FAULTS, FUNCTIONS, Died, ModuleFault, is_stale, unanswered
from betrace_kms_server.providers.pkcs11.inspection import inspect_wraps, problem_of
from betrace_kms_server.providers.pkcs11.keys import HsmKey, labelled
from betrace_kms_server.providers.pkcs11.remedies import remedy
from betrace_kms_server.providers.pkcs11.wrapped import joined, parts
from betrace_kms_server.providers.pkcs11.wraps import WrapCount

KEY = HsmKey("betrace", "master-1")
FIT = {
    "type": "AES",
    "SENSITIVE": True,
    "ALWAYS_SENSITIVE": True,
    "EXTRACTABLE": False,
    "NEVER_EXTRACTABLE": True,
    "ENCRYPT": True,
    "DECRYPT": True,
}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (KEY, "pkcs11:token=betrace;object=master-1"),
        (HsmKey("My token", "a/b%c"), "pkcs11:token=My%20token;object=a%2Fb%25c"),
        (HsmKey("Schlüssel", "é"), "pkcs11:token=Schl%C3%BCssel;object=%C3%A9"),
        (labelled("betrace", "master-1;id=01aB"), "pkcs11:token=betrace;object=master-1;id=%01%AB"),
    ],
)
def test_names_are_uris(key: HsmKey, name: str) -> None:
    """RFC 7512, and one name for a key: rows hold it for ever."""
    assert (name, "pkcs11") == (key.name, provider_of(name))


def exceptions() -> list[str]:
    """Return the names of the SDK's exceptions."""
    return [
        name for name, kind in vars(pkcs11).items() if isinstance(kind, type) and issubclass(kind, pkcs11.PKCS11Error)
    ]


@pytest.mark.parametrize("action", FUNCTIONS)
def test_every_exception_of_the_sdk_is_ours(action: str) -> None:
    """Whatever it exports becomes one of our errors, in one sentence, with a step for the operator."""
    assert 70 < len(exceptions())
    for name in [*exceptions(), "0x80000001", ""]:
        error = unanswered(action, KEY, ModuleFault(name))
        assert isinstance(error, KmsError), name
        assert ": " in error.message, name
        assert remedy(error, KEY), name


def test_the_table_names_what_there_is() -> None:
    """Exceptions of the SDK, faults of ours, and numbers of CK_RV."""
    ours = {"NoAesGcm", "NotASecretKey", "KeyFunctionNotPermitted", "ModuleNotLoaded", "PinFinalTry"}
    assert set() == {name for name in FAULTS if not name.startswith("0x")} - set(exceptions()) - ours


@pytest.mark.parametrize(
    ("fault", "action", "error", "stale"),
    [
        ("PinIncorrect", "Encrypt", CredentialsUnavailable, False),
        ("PinLocked", "Encrypt", CredentialsUnavailable, False),
        ("EncryptedDataInvalid", "Decrypt", DoesNotOpen, False),
        ("0x35", "Decrypt", DoesNotOpen, False),
        ("GeneralError", "Decrypt", KmsUnreachable, False),
        ("GeneralError", "Encrypt", KmsUnreachable, True),
        ("EncryptedDataInvalid", "Encrypt", KmsUnreachable, True),
        ("UserNotLoggedIn", "Encrypt", KmsUnreachable, True),
        ("NoSuchKey", "Encrypt", MasterKeyUnusable, False),
        ("NoSuchKey", "DescribeKey", MasterKeyUnusable, True),
        ("MechanismParamInvalid", "Encrypt", MasterKeyUnusable, False),
        ("HostMemory", "Encrypt", KmsUnreachable, True),
    ],
)
def test_what_a_fault_means(fault: str, action: str, error: type[KmsError], stale: bool) -> None:
    """And whether a new session may help."""
    found, do = ModuleFault(fault), {"Decrypt": "decrypt", "DescribeKey": "describe"}.get(action, "encrypt")
    assert (error, stale) == (type(unanswered(action, KEY, found)), is_stale(found, do))


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Died(-11), "crashed (SIGSEGV): the next call"),
        (Died(-99), "crashed (signal 99): the next call"),
        (Died(1), "exited with 1: the next call"),
        (Died(), "ended: the next call"),
        (TimeoutError(), "in time, and its process was ended: check the HSM"),
        (BlockingIOError(), "can be started (BlockingIOError): check the limits of processes"),
    ],
)
def test_what_became_of_a_process(cause: Exception, words: str) -> None:
    """It is an outage."""
    error = unanswered("Encrypt", KEY, cause)
    assert isinstance(error, KmsUnreachable)
    assert words in error.message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"type": None}, "is of type None"),
        ({"SENSITIVE": False}, "may be read in plaintext (CKA_SENSITIVE is False)"),
        ({"ALWAYS_SENSITIVE": False}, "was readable in plaintext once"),
        ({"EXTRACTABLE": True}, "may leave the token"),
        ({"NEVER_EXTRACTABLE": False}, "could leave the token once"),
        ({"NEVER_EXTRACTABLE": None}, "(CKA_NEVER_EXTRACTABLE is None)"),
        ({"ENCRYPT": False}, "does not encrypt"),
        ({"DECRYPT": False}, "does not decrypt"),
    ],
)
def test_which_key_is_fit(change: Mapping[str, object], problem: str | None) -> None:
    """What a token does not say is not taken for the best; a former key need not encrypt."""
    found = problem_of({**FIT, **change}, wraps=True)
    assert (found is None) == (problem is None)
    assert problem is None or (found is not None and problem in found[0])
    assert (problem_of({**FIT, **change}, wraps=False) is None) == (problem in (None, "does not encrypt"))


@pytest.mark.parametrize(
    ("iv", "ciphertext", "makes"),
    [
        (b"i" * 12, b"c" * 48, True),
        (b"i" * 11, b"c" * 48, False),
        (b"i" * 16, b"c" * 48, False),
        (bytes(12), b"c" * 48, False),
        (None, b"c" * 48, False),
        (b"i" * 12, b"c" * 47, False),
        (b"i" * 12, b"c" * 60, False),
        (b"i" * 12, None, False),
    ],
)
def test_what_makes_a_wrapped_key(iv: bytes | None, ciphertext: bytes | None, makes: bool) -> None:
    """An IV that the token did not write is none, and a ciphertext is as long as key and tag."""
    assert (b"bth1" + b"i" * 12 + b"c" * 48 if makes else None) == joined(iv, ciphertext, 32)


@pytest.mark.parametrize("blob", [b"", b"bth1", b"bth1" + bytes(28), b"btl1" + bytes(60)])
def test_what_is_no_wrapped_key(blob: bytes) -> None:
    """It is not sent to the HSM."""
    assert parts(blob) is None
    assert (bytes(12), bytes(17)) == parts(b"bth1" + bytes(29))


async def test_wraps_are_counted_over_restarts(tmp_path: Path) -> None:
    """A block that was begun counts whole: a wrap that was made is never forgotten."""
    first = WrapCount(tmp_path / "wraps", KEY.name, limit=10, block=4)
    await first.take()
    assert 0.4 == first.share
    second = WrapCount(tmp_path / "wraps", KEY.name, limit=10, block=4)
    for _ in range(6):
        await second.take()
    with pytest.raises(MasterKeyUnusable, match="has wrapped all the keys that one AES-GCM key may"):
        await second.take()
    assert "has used 100% of pkcs11.max-wraps" in inspect_wraps(KEY, second.share).problem
    other = WrapCount(tmp_path / "wraps", HsmKey("betrace", "master-2").name, limit=10)
    await other.take()
    assert [0o600] * 2 == [path.stat().st_mode & 0o777 for path in (tmp_path / "wraps").iterdir()]


@pytest.mark.parametrize("content", [b"", b"many pkcs11:token=betrace;object=master-1\n", b"5 pkcs11:other\n", b"\xff"])
async def test_a_damaged_count_is_not_begun_anew(content: bytes, tmp_path: Path) -> None:
    """It would be forgotten how often the key was used."""
    wraps = WrapCount(tmp_path, KEY.name, limit=10)
    wraps._path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="is damaged or cannot be read: restore it"):
        await wraps.take()
    assert content == wraps._path.read_bytes()


async def test_a_count_that_cannot_be_written_wraps_nothing(tmp_path: Path) -> None:
    """The folder is a file here."""
    (tmp_path / "wraps").touch()
    with pytest.raises(StoreUnavailable):
        await WrapCount(tmp_path / "wraps", KEY.name, limit=10).take()


GIVEN = {
    "betrace.kms.provider": "pkcs11",
    "pkcs11.module": "/usr/lib/libhsm.so",
    "pkcs11.token-label": "betrace",
    "pkcs11.key-label": "master-1",
    "pkcs11.pin-file": "/etc/betrace-kms/pin",
}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"pkcs11.module": ""}, "pkcs11.module is missing: give the path"),
        ({"pkcs11.module": "libhsm.so"}, "pkcs11.module must be an absolute path"),
        ({"pkcs11.token-label": ""}, "pkcs11.token-label is missing: name the token"),
        ({"pkcs11.token-label": "é" * 17}, "pkcs11.token-label (from test): "),
        ({"pkcs11.key-label": ""}, "pkcs11.key-label is missing: name the AES key"),
        ({"pkcs11.key-label": "a;b"}, "pkcs11.key-label (from test): "),
        ({"pkcs11.key-id": "abc"}, "pkcs11.key-id (from test): "),
        ({"pkcs11.former-key-labels": "a,b;id=xy"}, "'b;id=xy' names no key: write LABEL, or LABEL;id=HEX"),
        ({"pkcs11.pin-file": ""}, "pkcs11.pin-file is missing: name a file"),
        ({"pkcs11.iv": "random"}, "pkcs11.iv (from test): "),
    ],
)
def test_settings_that_are_not_whole(changed: Mapping[str, str], problem: str) -> None:
    """Each is named before the HSM is asked."""
    resolve([Source("test", GIVEN)])
    with pytest.raises(StartRefused) as caught:
        resolve([Source("test", {**GIVEN, **changed})])
    assert problem in str(caught.value)
