"""Fuzz one target in a process of its own: guided by coverage with atheris, or else by mutation.

    python -m tests.fuzz.one TARGET FOLDER SECONDS SEED

FOLDER keeps what atheris found to reach new code, for the next run. A finding is made small, and written to the folder
of the target in tests/fuzz/corpus, where it is a test from then on. Exits with 1 for a finding, and with what libFuzzer
chooses for an input that takes more than ten seconds or two gigabytes; that one is in FOLDER.
"""

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.mutation import MAX_BYTES, mutations

try:
    import atheris
except ImportError:
    atheris = None
OURS = ["betrace_kms_client", "betrace_kms_evidence", "betrace_kms_server", "javaproperties", "tomllib"]
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", f"-max_len={MAX_BYTES}"]

with atheris.instrument_imports(include=OURS) if atheris else nullcontext():
    from tests.fuzz.findings import finding_of, report
    from tests.fuzz.requests import METHODS, targets_in_this_process
    from tests.fuzz.targets import CORPUS, TARGETS, Target, kept


def mutate(check: Callable[[bytes], None], seeds: Sequence[bytes], seconds: float, seed: int) -> None:
    """Check mutated inputs for some time."""
    ends, count = time.monotonic() + seconds, 0
    inputs = mutations(seeds, seed=seed)
    while time.monotonic() < ends:
        check(next(inputs))
        count += 1
    print(f"Done {count} runs, not guided by coverage")


def guide(check: Callable[[bytes], None], seeds: Sequence[bytes], folder: Path, flags: Sequence[str]) -> None:
    """Let atheris choose inputs. Does not return."""
    first = folder / "seeds"
    grown = folder / "grown"
    for each in (first, grown):
        each.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (first / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup([sys.argv[0], *LIMITS, *flags, f"-artifact_prefix={folder}/", str(grown), str(first)], check)
    atheris.Fuzz()


def fuzz(name: str, target: Target, folder: Path, seconds: float, seed: int) -> None:
    """Fuzz a target, and end this process at a finding."""

    def check(data: bytes) -> None:
        cause = finding_of(target, data)
        if cause is not None:
            traceback.print_exception(cause)
            print(f"finding: {type(cause).__name__}: {report(target, data, cause, CORPUS / name)}", flush=True)
            os._exit(1)

    seeds = [*target.seeds, *kept(name)]
    if atheris:
        guide(check, seeds, folder, [f"-max_total_time={seconds:.0f}", f"-seed={seed}"])
    else:
        mutate(check, seeds, seconds, seed)


def main(name: str, folder: str, seconds: str, seed: str) -> None:
    """Fuzz a reader, or a method of a daemon that is started for it."""
    with TemporaryDirectory() as data:
        readers = nullcontext(TARGETS) if name not in METHODS else targets_in_this_process(Path(data))
        with readers as targets:
            fuzz(name, targets[name], Path(folder), float(seconds), int(seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
