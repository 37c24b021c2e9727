"""The commands for the operator, as a shell runs them, against an admin service that answers what a test gives it."""

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1 import admin_pb2_grpc

from tests.daemon import COMMAND

KEY = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
HEAD = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
STATUS: dict[str, Any] = {
    "provider": "aws",
    "version": "0.1.0",
    "uptime_seconds": 7512.3,
    "serving": True,
    "kms": {
        "usable": True,
        "error": None,
        "latency_ms": 4.2,
        "checked_seconds_ago": 3.0,
        "master_key": KEY,
        "region": "us-west-2",
        "breakers": {"us-east-1": "half_open", "us-west-2": "closed"},
    },
    "caches": [
        {
            "key_type": "signing",
            "size": 1000,
            "max_size": 1000,
            "ttl_seconds": 3600,
            "hits": 1234567,
            "misses": 1,
            "hit_rate": 0.99999,
            "evictions": {"expired": 1500, "size": 20, "invalidated": 0, "used_up": 3, "denied": 2, "purged": 1},
        },
        {
            "key_type": "encryption",
            "size": 0,
            "max_size": 1000,
            "ttl_seconds": 3600,
            "hits": 0,
            "misses": 0,
            "hit_rate": None,
            "evictions": {"expired": 0, "size": 0, "invalidated": 0, "used_up": 0, "denied": 0, "purged": 0},
        },
    ],
    "hit_rate": 0.9,
    "seconds_until_degraded": 3299.0,
    "kms_calls": {"GenerateDataKey": {"OK": 3000, "KMS_UNREACHABLE": 1}, "Decrypt": {"OK": 2}},
    "rpcs": {"SignSpan": {"OK": 1234568}},
    "cost": {
        "requests_per_second": 1000.0,
        "hit_rate": 0.8,
        "kms_calls_per_month": 525600000,
        "with_cache_dollars": 1577.8,
        "without_cache_dollars": 7885.0,
    },
    "store": {"kind": "sqlite", "error": None},
    "rotation": {"last_run": 1767319231.5, "failures": 1200},
    "audit": {
        "file": "/var/lib/betrace-kms/audit.jsonl",
        "required": True,
        "sequence": 1234,
        "head": HEAD,
        "written": 1200,
        "lost": 0,
        "error": None,
    },
    "of_a_later_version": {"any": ["thing"]},
}
SHOWN = f"""\
provider      aws
version       0.1.0
uptime        2 h 5 min
serving       yes
master key    {KEY}
region        us-west-2
KMS           usable, 4.2 ms, checked 3 s ago
breakers      us-east-1 half open, us-west-2 closed
degraded in   54 min
store         sqlite
rotation      last good run 2026-01-02 02:00:31 UTC, failures 1,200
audit         /var/lib/betrace-kms/audit.jsonl, required, sequence 1,234, written 1,200, lost 0
audit head    {HEAD}
cost          $1,577.80 a month with cache (525,600,000 KMS calls), $7,885.00 without, at 1,000.0 requests/s

key type      entries/max       hits    misses    hit rate  evictions
----------  -------------  ---------  --------  ----------  -----------------------------------------------------
signing       1,000/1,000  1,234,567         1      99.9 %  1,500 expired, 20 size, 3 used up, 2 denied, 1 purged
encryption        0/1,000          0         0           -  -

KMS call         outcome            count
---------------  ---------------  -------
Decrypt          OK                     2
GenerateDataKey  KMS_UNREACHABLE        1
GenerateDataKey  OK                 3,000

RPC       outcome        count
--------  ---------  ---------
SignSpan  OK         1,234,568
"""
MESSAGE = "KMS denies kms:GenerateDataKey: allow it to the daemon's role in the key policy or in IAM, then try again"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


class FakeAdmin(admin_pb2_grpc.KmsAdminServiceServicer):
    """Answers what a test gives it."""

    def __init__(self) -> None:
        self.validation = pb.ValidateResponse(provider="aws", passed=True)
        self.validation.tests.add(name="describe_key", passed=True, latency_ms=134.04, message="")
        self.validation.tests.add(name="generate_data_key", passed=True, latency_ms=4.21, message="")
        self.status = json.dumps(STATUS)
        self.entries = {"acme": 1234, "beta": 1}

    def Validate(self, request: pb.ValidateRequest, context: Any) -> pb.ValidateResponse:
        """Give the validation."""
        return self.validation

    def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Give the status."""
        return pb.GetStatusResponse(provider="aws", json=self.status)

    def InvalidateTenant(self, request: pb.InvalidateTenantRequest, context: Any) -> pb.InvalidateTenantResponse:
        """Give the entries of the tenant, or refuse."""
        if request.tenant_id not in self.entries:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "tenant_id must be one of ours")
        return pb.InvalidateTenantResponse(entries=self.entries[request.tenant_id])

    def RotateKeys(self, request: pb.RotateKeysRequest, context: grpc.ServicerContext) -> pb.RotateKeysResponse:
        """Is for test_lifecycle.py, with a real daemon."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def RevokeKey(self, request: pb.RevokeKeyRequest, context: grpc.ServicerContext) -> pb.RevokeKeyResponse:
        """Is for test_lifecycle.py, with a real daemon."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def Lock(self, request: pb.LockRequest, context: grpc.ServicerContext) -> pb.LockResponse:
        """Is for test_emergency_stop.py, with a real daemon."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def Unlock(self, request: pb.UnlockRequest, context: grpc.ServicerContext) -> pb.UnlockResponse:
        """Is for test_emergency_stop.py, with a real daemon."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def ShredTenant(self, request: pb.ShredTenantRequest, context: grpc.ServicerContext) -> pb.ShredTenantResponse:
        """Is for test_shredding.py, with a real daemon."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def fail(self) -> None:
        """Let the second test of the validation fail."""
        self.validation.passed = self.validation.tests[1].passed = False
        self.validation.tests[1].message = MESSAGE
        self.validation.recommendations.append(f"Mend the policy: {MESSAGE}.")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder for the socket."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def admin(data_dir: Path) -> Iterator[FakeAdmin]:
    """Serve on `<data-dir>/admin.sock`."""
    servicer = FakeAdmin()
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        admin_pb2_grpc.add_KmsAdminServiceServicer_to_server(servicer, server)
        server.add_insecure_port(f"unix:{data_dir}/admin.sock")
        server.start()
        yield servicer
        server.stop(None).wait()


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command that finds the daemon by its data folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "BETRACE_KMS_ADMIN_ADDR"}
    return {**inherited, "KMS_DATA_DIR": str(data_dir), **more}


@pytest.fixture
def run(data_dir: Path, tmp_path: Path) -> Run:
    """Run the command, without a terminal."""

    def run_command(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(COMMAND), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=tmp_path,
            env=environment(data_dir, **more),
            check=False,
        )

    return run_command


def on_terminal(data_dir: Path, *arguments: str) -> str:
    """Return what the command writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb") as screen:
        process = subprocess.Popen(
            [str(COMMAND), *arguments],
            stdout=follower,
            env=environment(data_dir, COLUMNS="80", TERM="xterm"),
        )
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(screen.fileno(), 65536):
                shown += chunk
        except OSError:  # Linux says EIO when the last writer has closed
            pass
        process.wait(timeout=30)
    return shown.decode().replace("\r\n", "\n")


def test_validate_shows_each_test_and_the_verdict(run: Run, admin: FakeAdmin) -> None:
    """Exit code 0 if all pass; no colours in a pipe."""
    done = run("validate")
    assert (done.returncode, done.stdout) == (
        0,
        """\
test               verdict       ms  message
-----------------  ---------  -----  ---------
describe_key       PASS       134.0
generate_data_key  PASS         4.2

overall: PASS
""",
    )


def test_validate_says_what_failed_and_what_to_do(run: Run, admin: FakeAdmin) -> None:
    """Exit code 1; the recommendations come last, one line each. A test that did not run has no latency."""
    admin.fail()
    admin.validation.tests.add(name="store", passed=False, message="not tried")
    done = run("validate")
    assert (done.returncode, f"generate_data_key  FAIL         4.2  {MESSAGE}\n" in done.stdout) == (1, True)
    assert "store              FAIL           -  not tried\n" in done.stdout
    assert done.stdout.endswith(f"\noverall: FAIL\n- Mend the policy: {MESSAGE}.\n")


def test_validate_without_tests_shows_the_verdict(run: Run, admin: FakeAdmin) -> None:
    """A daemon that ran none says so by its verdict."""
    admin.validation = pb.ValidateResponse(provider="local", passed=True)
    done = run("validate")
    assert (done.returncode, done.stdout.endswith("\noverall: PASS\n")) == (0, True)


def test_validate_writes_json(run: Run, admin: FakeAdmin) -> None:
    """One object, with the same exit codes."""
    admin.fail()
    done = run("validate", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (
        1,
        {
            "provider": "aws",
            "overall": "FAIL",
            "tests": [
                {"name": "describe_key", "passed": True, "latencyMs": 134.04, "message": ""},
                {"name": "generate_data_key", "passed": False, "latencyMs": 4.21, "message": MESSAGE},
            ],
            "recommendations": [f"Mend the policy: {MESSAGE}."],
        },
    )


def test_validate_fits_a_terminal_and_colours_the_verdicts(admin: FakeAdmin, data_dir: Path) -> None:
    """Green for PASS, red for FAIL; a long message is wrapped in its column."""
    admin.fail()
    shown = on_terminal(data_dir, "validate")
    plain = re.sub(r"\x1b\[\d+m", "", shown)
    assert ("\x1b[32mPASS\x1b[0m" in shown, "\x1b[31m\x1b[1mFAIL\x1b[0m" in shown) == (True, True)
    assert [line for line in plain.splitlines() if len(line) > 80] == []
    assert "generate_data_key  FAIL         4.2  KMS denies kms:GenerateDataKey:" in plain


def test_status_shows_all_that_it_knows(run: Run, admin: FakeAdmin) -> None:
    """Exit code 0 while the daemon serves; members that this version does not know are passed over."""
    done = run("status")
    assert (done.stdout, done.returncode) == (SHOWN, 0)


def test_status_writes_the_json_of_the_daemon(run: Run, admin: FakeAdmin) -> None:
    """Whole, with what this version does not know."""
    done = run("status", "--json")
    assert (json.loads(done.stdout), done.stdout[:4], done.returncode) == (STATUS, "{\n  ", 0)


def test_status_fits_a_terminal(admin: FakeAdmin, data_dir: Path) -> None:
    """Long lines are wrapped between words, so that an ARN can still be copied."""
    shown = re.sub(r"\x1b\[\d+m", "", on_terminal(data_dir, "status"))
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert f"master key\n  {KEY}\nregion" in shown
    assert "sequence 1,234,\n              written 1,200" in shown
    assert [line.split()[-2:] for line in shown.splitlines() if line.endswith((" size", " used up"))] == [
        ["20", "size"],
        ["used", "up"],
    ]


def test_status_says_what_is_wrong(run: Run, admin: FakeAdmin) -> None:
    """Exit code 1 if it does not serve; each part tells its own error."""
    kms = {"usable": False, "error": "KMS does not answer", "latency_ms": None, "checked_seconds_ago": 90.0}
    audit = {"file": "a.jsonl", "lost": 3, "error": "disk full"}
    admin.status = json.dumps({"kms": kms, "store": {"kind": "sqlite", "error": "locked"}, "audit": audit})
    done = run("status")
    assert (done.returncode, done.stdout) == (
        1,
        """\
serving       NO
KMS           NOT USABLE: KMS does not answer, checked 1 min ago
store         sqlite: locked
audit         a.jsonl, lost 3: disk full
""",
    )


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({}, ""),
        ({"caches": [{}]}, "-/-"),
        ({"audit": None}, "audit         off\n"),
        ({"kms": None, "caches": None, "kms_calls": None, "rpcs": {}, "cost": {"hit_rate": None}, "store": None}, ""),
        ({"kms": {"breakers": None}, "rotation": None}, ""),
        ({"kms": {"breakers": {}}, "rotation": {}}, ""),
        ({"rotation": {"last_run": None, "failures": 0}}, "rotation      no good run yet, failures 0\n"),
        ({"uptime_seconds": 59.9}, "uptime        59 s\n"),
        ({"seconds_until_degraded": 0.0}, "degraded in   0 s\n"),
        ({"shredding": {"pending": 0}}, ""),
        ({"shredding": {"pending": 1200, "failing": 1}}, "shredding     1,200 pending, 1 failing\n"),
        ({"uptime_seconds": 200000}, "uptime        2 d 7 h\n"),
        ({"former_master_keys": {"configured": [], "left": {"signing keys": 0}}}, ""),
        ({"former_master_keys": {"configured": ["a", "b"], "left": {}}}, "former keys   a; b\n"),
        (
            {"former_master_keys": {"configured": ["a"], "left": {"signing keys": 1200, "branch keys": 0}}},
            "former keys   a; 1,200 signing keys left\n",
        ),
    ],
)
def test_status_does_without_what_is_missing(run: Run, admin: FakeAdmin, status: dict[str, Any], shown: str) -> None:
    """An older or a later daemon has other members."""
    admin.status = json.dumps({"serving": True, **status})
    done = run("status")
    assert (done.returncode, done.stderr, shown in done.stdout) == (0, "", True)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_status_that_is_no_object_is_a_failed_call(run: Run, admin: FakeAdmin, text: str) -> None:
    """One line, no traceback."""
    admin.status = text
    done = run("status")
    assert (done.returncode, done.stderr.count("\n"), "is not a JSON object" in done.stderr) == (3, 1, True)


def test_invalidate_counts_what_was_dropped(run: Run, admin: FakeAdmin) -> None:
    """In words; the daemon's own refusal is passed on."""
    many, one, refused = (run("invalidate", "--tenant", tenant) for tenant in ("acme", "beta", "gamma"))
    assert (many.stdout, many.returncode) == ("dropped 1,234 cache entries\n", 0)
    assert (one.stdout, one.returncode) == ("dropped 1 cache entry\n", 0)
    assert (refused.stderr, refused.returncode) == ("betrace-kms: tenant_id must be one of ours\n", 3)


def test_a_tenant_that_is_no_text_is_a_usage_error(run: Run, admin: FakeAdmin) -> None:
    """A byte that is not UTF-8 cannot go into a request."""
    done = run("invalidate", "--tenant", "\udcff")
    assert (done.returncode, "must be UTF-8 text" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize("verb", ["validate", "status", "invalidate --tenant acme", "cost --live"])
def test_no_daemon_is_one_clear_sentence(run: Run, data_dir: Path, verb: str) -> None:
    """Exit code 3, as for every call that failed, and what to look at."""
    done = run(*verb.split())
    assert (done.returncode, done.stdout, done.stderr) == (
        3,
        "",
        f"betrace-kms: no daemon answers on unix:{data_dir}/admin.sock: is it running, and is KMS_DATA_DIR its "
        "kms.data-dir? The socket belongs to the daemon's user\n",
    )


def test_the_address_is_found_in_this_order(run: Run, admin: FakeAdmin, data_dir: Path, tmp_path: Path) -> None:
    """--admin-addr, BETRACE_KMS_ADMIN_ADDR, KMS_DATA_DIR, and ./data in the end."""
    real, absent = str(data_dir / "admin.sock"), str(tmp_path / "no.sock")
    by_option = run("status", "--admin-addr", real, BETRACE_KMS_ADMIN_ADDR=absent)
    by_variable = run("status", BETRACE_KMS_ADMIN_ADDR=f"unix:{real}", KMS_DATA_DIR="nowhere")
    by_default = run("status", KMS_DATA_DIR="")
    nowhere = run("status", KMS_DATA_DIR="nowhere")
    assert [by_option.returncode, by_variable.returncode, by_default.returncode, nowhere.returncode] == [0, 0, 0, 3]
    assert "on unix:nowhere/admin.sock" in nowhere.stderr


def test_an_address_without_the_admin_service_is_named(run: Run, data_dir: Path) -> None:
    """The daemon's other address knows no such call, nor does an older daemon."""
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_insecure_port(f"unix:{data_dir}/admin.sock")
        server.start()
        done = run("status")
        server.stop(None).wait()
    assert (done.returncode, "does not know this call: give its admin.sock" in done.stderr) == (3, True)


def test_cost_takes_its_figures_from_the_daemon(run: Run, admin: FakeAdmin) -> None:
    """With --live; an option that is given comes first."""
    live, given = run("cost", "--live", "--json"), run("cost", "--live", "--hit-rate", "0.9", "--json")
    found = [json.loads(done.stdout)["withCache"]["kmsCalls"] for done in (live, given)]
    assert found == [525_600_000, 262_800_000]


@pytest.mark.parametrize("cost", [{"requests_per_second": 1.0, "hit_rate": None}, {"requests_per_second": 1.0}, None])
def test_cost_needs_figures_that_the_daemon_has(run: Run, admin: FakeAdmin, cost: dict[str, Any] | None) -> None:
    """A daemon that nobody called yet has no hit rate; with both options given it is not needed."""
    admin.status = json.dumps({"cost": cost})
    lacking, given = run("cost", "--live"), run("cost", "--live", "--rps", "1", "--hit-rate", "0")
    assert (lacking.returncode, "yet: send it calls, or give --" in lacking.stderr) == (2, True)
    assert given.returncode == 0


@pytest.mark.parametrize("verb", ["cost", "invalidate", "status", "validate"])
def test_help_has_examples(run: Run, verb: str) -> None:
    """As for every other verb."""
    shown = run(verb, "--help").stdout
    assert (f"Examples:\n    betrace-kms {verb}" in shown, "--admin-addr" in shown) == (True, True)
