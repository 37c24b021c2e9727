"""Mutation tests, a folder at a time: python -m tests.mutants [FOLDER ...]

mutmut wants packages at the top of the tree that it works on, so this makes such a tree, lets mutmut mutate one folder
of it, and prints how many mutants the folder's tests killed. Tests that need moto are left out: mutmut forks, and a
server in a thread does not survive that. `mutmut show NAME` in the folder that is printed shows a survivor.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = ROOT / ".venv/bin"
PACKAGES = (
    "server/betrace_kms_server",
    "client/betrace_kms_client",
    "client/betrace_kms_envelope",
    "client/betrace_kms_evidence",
    "protos/betrace",
    "tests",
    "docs",
)
TESTS: Mapping[str, Sequence[str]] = {
    "betrace_kms_server/data_keys": (
        "contract/test_keyring*",
        "contract/test_budgets",
        "contract/test_cache_trust",
    ),
    "betrace_kms_envelope": ("unit/test_envelope", "contract/test_keyring*"),
    "betrace_kms_server/signing_keys": (
        "contract/test_rewrapping",
        "contract/test_signing*",
        "contract/test_lifecycle",
        "contract/test_rotation_attribution",
        "contract/test_rotation_runs",
        "contract/test_succession",
    ),
    "betrace_kms_server/cache": ("unit/test_cache*", "contract/test_cache_trust", "contract/test_lifecycle"),
    "betrace_kms_evidence": (
        "unit/test_auditor_script",
        "unit/test_canonical",
        "unit/test_dsse",
        "unit/test_jwks",
        "unit/test_merkle",
        "unit/test_signed_json",
        "unit/test_span_json",
        "unit/test_span_vectors",
        "unit/test_tree_head",
        "unit/test_verification",
    ),
    "betrace_kms_server/stores/sqlite": (
        "contract/test_row_state",
        "contract/test_sqlite_hangs",
        "contract/test_sqlite_store",
        "contract/test_stores",
        "contract/test_succession",
    ),
    "betrace_kms_server/stores/export.py": ("unit/test_export_line", "integration/test_keystore_command"),
    "betrace_kms_server/host/atomic_file.py": ("unit/test_atomic_file",),
}
"""What is mutated, and the tests that have to notice."""


def main(folders: Sequence[str]) -> None:
    """Mutate the folders, by default all, and print a line for each."""
    for folder in folders or TESTS:
        if folder not in TESTS:
            sys.exit(f"{folder} is not among {', '.join(TESTS)}")
        place = Path(tempfile.mkdtemp(prefix="mutants-"))
        for package in PACKAGES:
            shutil.copytree(ROOT / package, place / Path(package).name, ignore=shutil.ignore_patterns("node_modules"))
        configure(place, folder)
        subprocess.run(
            [BIN / "mutmut", "run"], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        subprocess.run(
            [BIN / "mutmut", "export-cicd-stats"],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        stats = json.loads((place / "mutants/mutmut-cicd-stats.json").read_text())
        print(
            f"{folder}: {stats['total']} mutants, {stats['killed'] + stats['timeout']} killed,"
            f" {stats['survived']} survived, {stats['no_tests']} not reached ({place})",
            flush=True,
        )


def configure(place: Path, folder: str) -> None:
    """Write the settings of mutmut and pytest."""
    tests = [str(path) for test in TESTS[folder] for path in sorted((place / "tests").glob(f"{test}.py"))]
    names = [str(Path(test).relative_to(place)) for test in tests]
    copied = "\n    ".join(sorted({Path(package).name for package in PACKAGES}))
    (place / "setup.cfg").write_text(
        f"[mutmut]\nsource_paths={folder}\n"
        f"pytest_add_cli_args_test_selection=\n    {chr(10).join(names).replace(chr(10), chr(10) + '    ')}\n"
        f"pytest_add_cli_args=\n    -k\n    not aws and not dynamodb\n"
        f"also_copy=\n    {copied}\n    pytest.ini\nmax_children=2\n"
    )
    (place / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "addopts = --import-mode=importlib\npythonpath = .\ntimeout = 20\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
