"""The verifier in examples/node, written from docs/signed-spans.md alone: one process for many documents."""

import json
import subprocess
from base64 import b64encode
from collections.abc import Iterable

from tests.interop.tools import ROOT, tool

SCRIPT = ROOT / "examples" / "node" / "verify-spans.mjs"


def verdicts(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return its verdicts on pairs of a key set and a document."""

    def encoded(text: str) -> str:
        return b64encode(text.encode("utf-8", "surrogatepass")).decode()

    done = subprocess.run(
        [tool("node"), "tests/interop/node/verdicts.mjs"],
        input="".join(f"{json.dumps({'keys': encoded(keys), 'document': encoded(text)})}\n" for keys, text in pairs),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return [line.partition(":")[0] for line in done.stdout.splitlines()]
