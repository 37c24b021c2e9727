"""The production gate: bad deployments are refused by the script and by the command, and a good one passes both.

AWS is played by moto behind a proxy with TLS that also plays IAM, and answers to the names of AWS: a daemon needs no
endpoint override. Bad deployments are daemons of this process, whose name resolution is patched; the good one is a
process of its own, under a user who is not root.
"""

import asyncio
import os
import re
import secrets
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3  # type: ignore[import-untyped]
import pytest
from betrace_kms_client.cli import main
from betrace_kms_server import assembly, startup
from betrace_kms_server.operations import shared_run
from click.testing import CliRunner

from tests.authority import Authority
from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.daemon import COMMAND, running, spawned
from tests.faults.interpose import machine
from tests.interop.tools import ROOT, tool

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

CHECKLIST = ROOT / "deploy" / "checks" / "pre-deployment.sh"
NOBODY = 65534
ALLOWED = frozenset(
    {
        *("DescribeKey", "GenerateDataKey", "Encrypt", "Decrypt"),
        *("DescribeTable", "DescribeContinuousBackups", "GetItem", "Query", "Scan", "PutItem", "UpdateItem"),
        *("TransactWriteItems", "TransactGetItems"),
    }
)
"""What deploy/iam/betrace-kms-policy.json allows, without the shredding of tenants."""


@dataclass
class Aws:
    """What stands in for AWS at its own names."""

    proxy: AwsProxy
    moto: "MotoServer"
    port: int
    ca_file: Path
    keys: str = field(default_factory=lambda: f"keys-{secrets.token_hex(6)}")
    branch_keys: str = field(default_factory=lambda: f"branch-keys-{secrets.token_hex(6)}")

    def allow(self, **more: Verdict) -> None:
        """Allow the daemon's role what it needs, and give these actions other verdicts."""
        self.proxy.judge = lambda action: more.get(action, "pass" if action in ALLOWED else "deny")

    def make_good(self) -> None:
        """Let everything be as it must be."""
        self.allow()
        self.set_recovery(self.keys, True)
        self.set_recovery(self.branch_keys, True)
        self.set_protection(self.keys, True)

    def set_recovery(self, table: str, on: bool) -> None:
        """Turn point-in-time recovery of a table on or off."""
        recovery = {"PointInTimeRecoveryEnabled": on}
        self.dynamodb.update_continuous_backups(TableName=table, PointInTimeRecoverySpecification=recovery)

    def set_protection(self, table: str, on: bool) -> None:
        """Turn the deletion protection of a table on or off."""
        self.dynamodb.update_table(TableName=table, DeletionProtectionEnabled=on)

    @cached_property
    def dynamodb(self) -> Any:
        """A client with an operator's rights."""
        return boto3.client("dynamodb", endpoint_url=self.moto.url, region_name="us-east-1")

    def settings(self, key: str) -> dict[str, str]:
        """Return the settings of a good deployment."""
        return {
            "betrace_kms_provider": "aws",
            "aws_kms_master_key_id": key,
            "kms_store": "dynamodb",
            "kms_store_table": self.keys,
            "kms_branch_keys_table": self.branch_keys,
            "kms_audit_file": "-",
        }


@pytest.fixture(scope="module")
def aws(moto: "MotoServer", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """Run it, with tables as `keystore init` makes them."""
    from betrace_kms_server.stores.dynamodb.creation import create_table  # late, as moto
    from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS, KEY_STORE

    folder = tmp_path_factory.mktemp("aws")
    authority, tls = Authority(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue(host="*.us-east-1.amazonaws.com").write(folder / "tls"))
    (folder / "ca.pem").write_bytes(authority.pem)
    with aws_proxy(moto.url, tls=tls) as proxy:
        found = Aws(proxy, moto, int(proxy.url.rpartition(":")[2]), folder / "ca.pem")

        async def make_tables() -> None:
            for kind, table in ((KEY_STORE, found.keys), (BRANCH_KEYS, found.branch_keys)):
                async for _ in create_table(table, region="us-east-1", endpoint=moto.url, kind=kind):
                    pass

        asyncio.run(make_tables())
        yield found


@pytest.fixture
def deployed(aws: Aws, kms_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let this process be a good deployment, and give its settings."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host).endswith(".amazonaws.com"):
            host, port = "127.0.0.1", aws.port
        return resolve(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(assembly, "runs_as_root", lambda: False)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(aws.ca_file))
    aws.allow()
    return aws.settings(kms_key) | {"kms_server_listen": f"unix:{tmp_path}/a.sock;identity=a"}


@dataclass(frozen=True)
class Verdicts:
    """What the script and the command say of a daemon: exit codes, and all that they wrote."""

    codes: tuple[int, int]
    script: str
    command: str

    def failed(self) -> set[str]:
        """Return the tests that fail by the command; the script must name the same."""
        named = set(re.findall(r"^(\w+) +FAIL\b", self.command, re.MULTILINE))
        assert named == set(re.findall(r"^ {6}(\w+): FAIL\b", self.script, re.MULTILINE)), self.script + self.command
        return named

    def check(self, tests: Sequence[str], said: str) -> None:
        """Fail unless both refuse, for these tests alone, and both say so."""
        assert ((1, 1), set(tests)) == (self.codes, self.failed()), self.script + self.command
        assert said in self.script, self.script
        assert said in self.command, self.command


async def verdicts(ops_address: str, data_dir: Path, patch: pytest.MonkeyPatch) -> Verdicts:
    """Run the script on a new outcome, and the command on the same one."""
    patch.setattr(shared_run, "FRESH_SECONDS", 0.0)
    script = await asyncio.to_thread(
        subprocess.run,
        (CHECKLIST, f"http://{ops_address}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    patch.setattr(shared_run, "FRESH_SECONDS", 60.0)
    arguments = ["validate", "--production", "--admin-addr", f"unix:{data_dir}/admin.sock"]
    command = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    return Verdicts((script.returncode, command.exit_code), script.stdout, command.output)


@pytest.fixture(autouse=True)
def tools() -> None:
    """The script needs curl and jq."""
    for name in ("curl", "jq"):
        tool(name)


Change = Callable[[Aws, pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Bad:
    """One thing that is wrong with a deployment: how it comes about, the tests that fail for it, and what they say."""

    tests: Sequence[str]
    said: str
    settings: Mapping[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()
    in_dynamodb: bool = False
    change: Change = lambda aws, patch: None


DYNAMODB = ("kms_store", "kms_store_table", "kms_branch_keys_table")
EMULATED = (
    "production_key_store_endpoint",
    "production_key_store_role",  # the emulator lets everybody delete
    "production_branch_key_store_endpoint",
)
BAD_SETTINGS: Mapping[str, Bad] = {
    "provider local": Bad(
        ["production_provider"],
        "provider local is NOT FOR PRODUCTION",
        without=("betrace_kms_provider", "aws_kms_master_key_id"),
    ),
    "KMS endpoint set": Bad(
        ["production_endpoints", "production_kms_endpoint", "production_kms_role"],
        "aws.kms.endpoint is set: calls do not go to AWS KMS",
        settings={"aws_kms_endpoint": "MOTO"},
    ),
    "KMS endpoint by the SDK": Bad(
        ["production_kms_endpoint", "production_kms_role"],
        "calls to KMS in us-east-1 go to http://127.0.0.1, which is not AWS",
        change=lambda aws, patch: patch.setenv("AWS_ENDPOINT_URL_KMS", aws.moto.url),
    ),
    "store endpoint set": Bad(
        ["production_endpoints", *EMULATED],
        "kms.store.endpoint is set: keys are not kept in DynamoDB of AWS",
        settings={"kms_store_endpoint": "MOTO"},
        in_dynamodb=True,
    ),
    "store endpoint by the SDK": Bad(
        EMULATED,
        "calls to DynamoDB go to http://127.0.0.1, which is not AWS",
        change=lambda aws, patch: patch.setenv("AWS_ENDPOINT_URL_DYNAMODB", aws.moto.url),
        in_dynamodb=True,
    ),
    "ephemeral volume": Bad(
        ["production_volume"],
        "and its keys die with it: mount a persistent volume",
        settings={"kms_store_allow_ephemeral": "true"},
        change=lambda aws, patch: patch.setattr(startup, "ephemeral_kind", lambda folder: "emptyDir"),
    ),
    "callers unauthenticated": Bad(
        ["production_callers"],
        "callers are not authenticated at 127.0.0.1:0",
        settings={"kms_server_listen": "127.0.0.1:0"},
    ),
    "root": Bad(
        ["production_user"],
        "the daemon runs as root",
        change=lambda aws, patch: patch.setattr(assembly, "runs_as_root", lambda: True),
    ),
    "memory readable": Bad(
        ["production_memory"], "kms.process.dumpable is set", settings={"kms_process_dumpable": "true"}
    ),
    "no audit trail": Bad(["production_audit"], "kms.audit.file is not set", without=("kms_audit_file",)),
    "reflection beside a policy": Bad(
        ["production_reflection"],
        "kms.server.reflection is on",
        settings={"kms_policy_file": "POLICY", "kms_server_reflection": "true"},
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
async def test_a_bad_deployment_is_refused(
    aws: Aws, deployed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Script and command fail for the one thing that is wrong, and say what to do."""
    bad = BAD_SETTINGS[name]
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nname = "a"\nidentities = ["a"]\ntenants = ["*"]\noperations = ["*"]\n')
    stand_ins = {"MOTO": aws.moto.url, "POLICY": str(policy)}
    values = deployed | {setting: stand_ins.get(value, value) for setting, value in bad.settings.items()}
    without = {*bad.without, *(() if bad.in_dynamodb else DYNAMODB)}
    monkeypatch.setattr(startup, "ephemeral_kind", lambda folder: None)
    bad.change(aws, monkeypatch)
    async with running(tmp_path / "data", **{each: values[each] for each in values.keys() - without}) as daemon:
        found = await verdicts(daemon.ops_address, tmp_path / "data", monkeypatch)
    found.check(bad.tests, bad.said)


def iam(action: str, verdict: Verdict) -> Change:
    """Return what gives the daemon's role another verdict for one action."""
    return lambda aws, patch: aws.allow(**{action: verdict})


def role(action: str, verdict: Verdict = "dry-run") -> Bad:
    """Return a deployment whose role may do more with the master key than it needs."""
    return Bad(
        ["production_kms_role"], f"the daemon's role may use kms:{action}: take that away", change=iam(action, verdict)
    )


BAD_IN_AWS: Mapping[str, Bad] = {
    "role may list keys": role("ListKeys", "pass"),
    "role may read the key policy": role("GetKeyPolicy", "pass"),
    "role may make grants": role("CreateGrant"),
    "role may re-encrypt": role("ReEncrypt"),
    "role may make data keys unseen": role("GenerateDataKeyWithoutPlaintext"),
    "role not known": Bad(
        ["production_kms_role"],
        "not known whether the daemon's role may use kms:CreateGrant (ExpiredTokenException): validate again",
        change=iam("CreateGrant", "expired"),
    ),
    "role lacks a permission": Bad(
        ["encrypt", "branch_key_context"], "KMS denies kms:Encrypt", change=iam("Encrypt", "deny")
    ),
    "role may delete keys": Bad(
        ["production_key_store_role"],
        "the daemon's role may use dynamodb:DeleteItem on arn:aws:dynamodb:us-east-1",
        change=iam("DeleteItem", "pass"),
    ),
    "recovery not known": Bad(
        ["production_key_store", "production_branch_key_store"],
        "not known: DynamoDB denies dynamodb:DescribeContinuousBackups",
        change=iam("DescribeContinuousBackups", "deny"),
    ),
    "recovery of the key store off": Bad(
        ["production_key_store_recovery"],
        "point-in-time recovery of arn:aws:dynamodb:us-east-1",
        change=lambda aws, patch: aws.set_recovery(aws.keys, False),
    ),
    "recovery of the branch key store off": Bad(
        ["production_branch_key_store_recovery"],
        "is off: run betrace-kms keystore init",
        change=lambda aws, patch: aws.set_recovery(aws.branch_keys, False),
    ),
    "key store can be deleted": Bad(
        ["production_key_store_protection"],
        "deletion protection of arn:aws:dynamodb:us-east-1",
        change=lambda aws, patch: aws.set_protection(aws.keys, False),
    ),
}


async def test_a_daemon_is_refused_for_what_is_bad_in_aws_and_passes_when_it_is_good(
    aws: Aws, deployed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One daemon, for which one thing after the other is wrong in AWS; before each of them, everything is good."""
    async with running(tmp_path / "data", **deployed) as daemon:

        async def judged() -> Verdicts:
            return await verdicts(daemon.ops_address, tmp_path / "data", monkeypatch)

        good = await judged()
        assert ((0, 0), set()) == (good.codes, good.failed()), good.script + good.command
        tried = {
            "ListKeys",
            "GetKeyPolicy",
            "CreateGrant",
            "ReEncrypt",
            "GenerateDataKeyWithoutPlaintext",
            "DeleteItem",
        }
        assert set() == tried - set(aws.proxy.calls)
        documented = re.findall(
            r"^\| (`production_.*?) \|", (ROOT / "docs/production.md").read_text("utf-8"), re.MULTILINE
        )
        assert set(re.findall(r"\bproduction_\w+", good.command)) == set(re.findall(r"\w+", " ".join(documented)))
        for bad in BAD_IN_AWS.values():
            aws.make_good()
            bad.change(aws, monkeypatch)
            (await judged()).check(bad.tests, bad.said)
        aws.make_good()
        assert (0, 0) == (await judged()).codes


def as_nobody(*command: str) -> Sequence[str]:
    """Return a command that runs under a user who is not root."""
    if os.geteuid():
        return command
    tool("setpriv")
    found = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command)
    if subprocess.run([*found[:4], COMMAND, "version"], capture_output=True, check=False).returncode:
        pytest.skip("the user nobody cannot run what is installed here, and root is no good deployment")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that nobody has, and what is in it is that user's."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o711)
        yield Path(path)


def test_a_good_deployment_passes(aws: Aws, kms_key: str, folder: Path) -> None:
    """A process with nothing but its settings: not root, real names of AWS, metrics at an address of their own.

    Both say that it is ready, from the machine that it is on; at the address for Prometheus the script finds nothing.
    """
    tool("cc")
    aws.make_good()
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(aws.ca_file.read_bytes())
    data, run = folder / "data", folder / "run"
    for made in (data, run):
        made.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(made, NOBODY, NOBODY)
    environ = machine(folder).environ | {name.upper(): value for name, value in aws.settings(kms_key).items()}
    environ |= {
        "FAULT_AWS_PORT": str(aws.port),
        "AWS_CA_BUNDLE": str(ca_file),
        "KMS_AUDIT_FILE": str(data / "audit.jsonl"),
        "KMS_OPS_LISTEN": "127.0.0.1:0,0.0.0.0:0",
    }
    arguments = ("--data-dir", str(data), "--listen", f"unix:{run}/a.sock;identity=a")
    with spawned(*arguments, environ=environ, command=as_nobody(str(COMMAND), "serve")) as daemon:
        daemon.wait_for("KMS is usable, serving")
        local, exposed = re.findall(r"\d+\.0\.0\.\d:\d+", daemon.wait_for("Listening").partition("operations")[2])
        commands = (
            (COMMAND, "validate", "--production", "--admin-addr", f"unix:{data}/admin.sock"),
            (CHECKLIST, f"http://{local}"),
            (CHECKLIST, f"http://127.0.0.1:{exposed.rpartition(':')[2]}"),
        )
        command, script, other = (
            subprocess.run(words, capture_output=True, text=True, timeout=60, check=False) for words in commands
        )
        assert daemon.metrics()["kms_up"] == 1.0
    assert (0, 0) == (command.returncode, script.returncode), command.stdout + script.stdout
    assert "overall: PASS" in command.stdout
    assert "PASS  validation: PASS" in script.stdout
    assert (1, "call a loopback address of kms.ops.listen" in other.stdout) == (other.returncode, True)


def test_without_its_tools_the_script_names_the_command(tmp_path: Path) -> None:
    """Where curl or jq is missing, the command makes the same tests."""
    bash = tool("bash")
    (tmp_path / "curl").symlink_to(tool("curl"))
    done = subprocess.run([bash, CHECKLIST], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (1, "there is no jq here: install it, or run betrace-kms validate --production" in done.stdout) == (
        done.returncode,
        True,
    )
