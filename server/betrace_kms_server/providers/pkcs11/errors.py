"""What a fault of the PKCS#11 library means: one table for all requests of the provider.

A fault has the name of the SDK's exception, which is that of the CKR_ code, or a name of module.py; a code that the SDK
has no exception for is a hexadecimal number (PKCS #11 v3.1, section 5.1.5).
"""

import asyncio
import signal
from collections.abc import Callable, Mapping

from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.host.process import descriptor_shortage
from betrace_kms_server.providers.pkcs11.keys import HsmKey

UNFIT = "Unfit"
"""State of a master key that no outage explains: with it, nothing could ever work."""
FUNCTIONS: Mapping[str, tuple[str, str]] = {
    "GenerateDataKey": ("C_Encrypt", "CKA_ENCRYPT"),
    "Encrypt": ("C_Encrypt", "CKA_ENCRYPT"),
    "Decrypt": ("C_Decrypt", "CKA_DECRYPT"),
    "DescribeKey": ("C_Encrypt", "CKA_ENCRYPT and CKA_DECRYPT"),
    "GenerateRandom": ("C_GenerateRandom", "no attribute"),
}
"""For each of our operations, the function that the token must allow, and the attribute of the key that does."""
PIN_REFUSED = frozenset({"PinIncorrect", "PinInvalid", "PinLenRange"})
UNSPECIFIC = frozenset({"GeneralError", "FunctionFailed", "DeviceError", "ArgumentsBad"})
"""What some libraries return where the tag of a ciphertext is wrong, and others where the token is out of order."""
_DOES_NOT_OPEN = frozenset({"EncryptedDataInvalid", "EncryptedDataLenRange", "DataInvalid", "DataLenRange", "0x35"})


class ModuleFault(Exception):
    """A request that the library, or the process that holds it, answered with a fault."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(name, detail)
        self.name = name
        self.detail = detail


class Died(Exception):
    """The process that holds the library is gone. `code` is how it exited, if that is known."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def unanswered(action: str, key: HsmKey, cause: BaseException) -> KmsError:
    """Return the error for a request that failed, whatever made it fail."""
    if isinstance(cause, KmsError):
        return cause
    if isinstance(cause, ModuleFault):
        if action == "Decrypt" and cause.name in _DOES_NOT_OPEN:
            return DoesNotOpen()
        return FAULTS.get(cause.name, _failed)(action, key, cause)
    if isinstance(cause, Died):
        return KmsUnreachable(
            f"the process that holds the PKCS#11 library {_ended(cause.code)}: the next call starts another; if it"
            " stays, look at the library's log and version",
            metadata={"kind": "crash"},
        )
    if isinstance(cause, asyncio.TimeoutError):
        return KmsUnreachable(
            "no answer from the PKCS#11 library in time, and its process was ended: check the HSM, the route to it, and"
            " pkcs11.call-timeout-ms",
            metadata={"kind": "timeout"},
        )
    return KmsUnreachable(
        descriptor_shortage()
        or f"no process for the PKCS#11 library can be started ({type(cause).__name__}): check the limits of processes"
        " and memory",
        metadata={"kind": "process"},
    )


def is_stale(fault: ModuleFault, do: str) -> bool:
    """Return whether a new session may do better at a request of that kind.

    What may be about a ciphertext says nothing about the session: callers could have sessions opened at will. A session
    may find no key because its token went away: a check, which is seldom, has another one opened.
    """
    if do == "decrypt" and fault.name in UNSPECIFIC | _DOES_NOT_OPEN:
        return False
    made = FAULTS.get(fault.name, _failed)
    return made in (_failed, _gone) or (made is _no_key and do == "describe")


def pin_unread(problem: str) -> CredentialsUnavailable:
    """Return the error for a file of the PIN that cannot be used."""
    return CredentialsUnavailable(f"the daemon has no PIN for the token: {problem}", metadata={"kind": "pin-file"})


def pin_refused() -> CredentialsUnavailable:
    """Return the error for a PIN that the token refused. It is not tried again: a few tries lock the token."""
    return CredentialsUnavailable(
        "the token refused the PIN, which is not tried again: write the right one to pkcs11.pin-file",
        metadata={"kind": "pin"},
    )


def unfit(key: HsmKey, problem: str, step: str) -> MasterKeyUnusable:
    """Return the error for a key or a token that can never serve. `problem` completes "KEY ..."."""
    return MasterKeyUnusable(f"{key.name} {problem}: {step}", metadata={"master_key": key.name}, state=UNFIT)


_ANOTHER_KEY = "make another key as docs/providers/pkcs11.md says, and set pkcs11.key-label"
_Make = Callable[[str, HsmKey, ModuleFault], KmsError]


def _failed(action: str, _key: HsmKey, fault: ModuleFault) -> KmsError:
    return KmsUnreachable(
        f"the PKCS#11 library fails at {action} with {fault.name}: check the HSM, and the library's configuration and"
        " log",
        metadata={"kind": fault.name},
    )


def _gone(_action: str, key: HsmKey, fault: ModuleFault) -> KmsError:
    return KmsUnreachable(
        f"the session on token {key.token} is gone ({fault.name}): check that the token is there",
        metadata={"kind": fault.name},
    )


def _no_token(_action: str, key: HsmKey, fault: ModuleFault) -> KmsError:
    found = f"it has {fault.detail}" if fault.detail else "it has none"
    return KmsUnreachable(
        f"the PKCS#11 library has no token {key.token}, {found}: check pkcs11.token-label, and that the HSM is there",
        metadata={"kind": fault.name},
    )


def _no_memory(_action: str, _key: HsmKey, fault: ModuleFault) -> KmsError:
    return Throttled(
        f"the token has no room for another session ({fault.name}): lower pkcs11.processes, or close others' sessions"
    )


def _no_key(_action: str, key: HsmKey, _fault: ModuleFault) -> KmsError:
    return MasterKeyUnusable(
        f"the token has no key {key.name}: check pkcs11.key-label and pkcs11.key-id, or {_ANOTHER_KEY}",
        metadata={"master_key": key.name},
        state="NotFound",
    )


def _denied(action: str, key: HsmKey, _fault: ModuleFault) -> KmsError:
    function, attribute = FUNCTIONS[action]
    return AccessDenied(
        f"the token does not permit {function} with {key.name}: set {attribute} of the key, and let the daemon's user"
        " use it",
        metadata={"action": function, "master_key": key.name},
    )


def _refused_pin(_action: str, _key: HsmKey, _fault: ModuleFault) -> KmsError:
    return pin_refused()


def _locked_pin(_action: str, key: HsmKey, fault: ModuleFault) -> KmsError:
    problem, step = {
        "PinLocked": ("has locked the PIN", "let its security officer set a PIN"),
        "PinFinalTry": (
            "locks the PIN at the next wrong one, so it is not tried",
            "log in by another program with the right one",
        ),
        "PinExpired": ("says that the PIN is expired", "change it, and write it to pkcs11.pin-file"),
    }.get(fault.name, ("has no PIN for its user", "let its security officer set one"))
    return CredentialsUnavailable(f"token {key.token} {problem}: {step}", metadata={"kind": fault.name})


def _unfit(problem: str, step: str = _ANOTHER_KEY) -> _Make:
    return lambda _action, key, fault: unfit(key, problem.format(fault=fault), step)


_MECHANISM = _unfit(
    "is on a token that refuses our AES-GCM ({fault.name})", "try pkcs11.iv=token, or choose another HSM"
)

FAULTS: Mapping[str, _Make] = {
    **dict.fromkeys(PIN_REFUSED, _refused_pin),
    **dict.fromkeys(("PinLocked", "PinFinalTry", "PinExpired", "PinTooWeak", "UserPinNotInitialized"), _locked_pin),
    **dict.fromkeys(
        (
            *("SessionClosed", "SessionHandleInvalid", "UserNotLoggedIn", "KeyHandleInvalid", "ObjectHandleInvalid"),
            *("DeviceRemoved", "TokenNotPresent", "TokenNotRecognised", "SlotIDInvalid", "OperationActive"),
            *("OperationNotInitialized", "0x190"),
        ),
        _gone,
    ),
    "NoSuchToken": _no_token,
    **dict.fromkeys(("SessionCount", "DeviceMemory"), _no_memory),
    **dict.fromkeys(("NoSuchKey",), _no_key),
    **dict.fromkeys(("KeyFunctionNotPermitted", "0x68", "0x1b", "FunctionRejected"), _denied),
    **dict.fromkeys(("MechanismInvalid", "MechanismParamInvalid", "FunctionNotSupported", "NoAesGcm"), _MECHANISM),
    **dict.fromkeys(("KeyTypeInconsistent", "KeySizeRange", "NotASecretKey"), _unfit("is no AES key")),
    "MultipleObjectsReturned": _unfit(
        "is the name of several keys", "give them labels of their own, or set pkcs11.key-id"
    ),
    "MultipleTokensReturned": _unfit("is on one of several tokens of that label", "give them labels of their own"),
    "ModuleNotLoaded": _unfit(
        "cannot be reached, because pkcs11.module is no PKCS#11 library that can be loaded ({fault.detail})",
        "check its path, and that it is made for this machine",
    ),
    "RandomNoRNG": _unfit("is on a token without a generator", "set pkcs11.random=os"),
}
"""What is not here is `_failed`."""


def _ended(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"
