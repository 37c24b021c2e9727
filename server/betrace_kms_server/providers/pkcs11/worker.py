"""The process that holds the PKCS#11 library: it may hang or crash, and the daemon goes on.

It is started by process.py with the number of its end of a socket pair, over which both sides send lines of JSON: one
request, one answer. Bytes are in base64. An answer is {"answer": ...} or {"fault": NAME, "detail": TEXT}; NAME is that
of an exception of the SDK, of a Fault, or the hexadecimal number of a CK_RV that the SDK does not know.

The PIN comes by the first request, not by arguments or environment. When the daemon is gone, the process ends, also
while the library hangs.
"""

import json
import os
import socket
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from pkcs11 import PKCS11Error

from betrace_kms_server.host.process import harden
from betrace_kms_server.providers.pkcs11.module import Fault, Hsm

_CLOSE_SECONDS = 1.0


class Worker:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self._hsm: Hsm | None = None

    def answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the answer to a request, or the fault that it met."""
        try:
            return {"answer": self._do(request)}
        except Fault as fault:
            return {"fault": fault.name, "detail": fault.detail}
        except PKCS11Error as error:
            return {"fault": _name(error), "detail": ""}

    def close(self) -> None:
        """Log out, if it is logged in."""
        if self._hsm is not None:
            with suppress(PKCS11Error):  # the token is gone
                self._hsm.close()

    def _do(self, request: Mapping[str, Any]) -> Any:
        if request["do"] == "open":
            self._hsm = Hsm(request["module"], request["token"], request["pin"], token_iv=request["token_iv"])
            return None
        if self._hsm is None:
            raise Fault("OperationNotInitialized")
        if request["do"] == "random":
            return _text(self._hsm.random(request["bytes"]))
        label, id_ = request["label"], bytes.fromhex(request["id"])
        if request["do"] == "describe":
            return self._hsm.describe(label, id_)
        aad = b64decode(request["aad"])
        if request["do"] == "encrypt":
            iv, ciphertext = self._hsm.encrypt(label, id_, b64decode(request["plaintext"]), aad)
            return {"iv": _text(iv), "ciphertext": _text(ciphertext)}
        ciphertext = b64decode(request["ciphertext"])
        return _text(self._hsm.decrypt(label, id_, b64decode(request["iv"]), ciphertext, aad))


def _name(error: PKCS11Error) -> str:
    """Return the name of an error; of one without a class, the number that its text ends with."""
    if type(error) is PKCS11Error:
        return str(error).rpartition(" ")[2]
    return type(error).__name__


def _text(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def main(descriptor: int) -> None:
    """Answer until the daemon closes its end."""
    harden()
    lines: SimpleQueue[bytes] = SimpleQueue()
    end = socket.socket(fileno=descriptor)

    def read() -> None:
        with end.makefile("rb") as stream:
            for line in stream:
                lines.put(line)
        lines.put(b"")
        time.sleep(_CLOSE_SECONDS)  # the library may hang
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    worker = Worker()
    while line := lines.get():
        end.sendall(json.dumps(worker.answer(json.loads(line))).encode() + b"\n")
    worker.close()
    os._exit(0)  # without the library's own exit handlers: some hang


if __name__ == "__main__":
    main(int(sys.argv[1]))
