"""Terraform itself on deploy/terraform: its format, its arguments, its policies, and a daemon on what it would make.

The AWS provider is not here. aws_provider.py is a plug-in with its schema, so that Terraform checks every argument and
reference, and plans with a provider that deploy/terraform/tests mocks. What AWS itself would refuse, it does not find.
"""

import asyncio
import json
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from betrace_kms_client import AsyncKmsClient
from betrace_kms_server.cli.keystore_init import init
from betrace_kms_server.config import sources as config
from botocore.session import get_session
from click.testing import CliRunner

from tests.daemon import running
from tests.interop.aws_provider import aws_schema
from tests.interop.aws_schema_extract import SCHEMA, used
from tests.interop.terraform import MODULE, Terraform, policies, terraform
from tests.interop.tools import ROOT, tool
from tests.moto_server import REGION, MotoServer

Plans = Mapping[str, Any]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    """A copy of the module, with the schema of the AWS provider."""
    with aws_schema() as environ:
        yield terraform(MODULE, tmp_path_factory.mktemp("terraform") / "module", environ)


@pytest.fixture(scope="module")
def plans(module: Terraform) -> Plans:
    """Run the module's own tests; gives the plan of each of their runs, which are those of the examples."""
    lines = [json.loads(line) for line in module("test", "-json", "-verbose").splitlines()]
    [summary] = [line["test_summary"] for line in lines if line["type"] == "test_summary"]
    assert ("pass", 0, 0, 0) == tuple(summary[name] for name in ("status", "failed", "errored", "skipped"))
    return {line["@testrun"]: line["test_plan"] for line in lines if line["type"] == "test_plan"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The policies for the example's account, as Terraform evaluates them."""
    return policies(tmp_path_factory.mktemp("terraform") / "policies")


def planned(plan: Any, type_: str, name: str) -> Any:
    """Return what a plan gives one resource of its own kind."""
    [found] = [each for each in plan["resource_changes"] if (type_, name) == (each["type"], each["name"])]
    return found["change"]["after"]


def test_files_are_formatted(module: Terraform) -> None:
    """As `terraform fmt` writes them."""
    assert "" == module("fmt", "-check", "-recursive", "-diff")


def test_module_and_examples_have_only_what_the_provider_knows(module: Terraform) -> None:
    """Every argument, block and reference is one of the provider's schema, and every required one is there."""
    assert "valid" in module("validate", "-no-color")


def test_schema_has_what_the_module_uses() -> None:
    """Nothing is missing from it, and nothing is there for no reason."""
    schema = json.loads(SCHEMA.read_text("utf-8"))
    assert set(used()) == {(kind, name) for kind in ("resource", "data") for name in schema[kind]}


def test_every_example_is_planned(plans: Plans) -> None:
    """Each has a run of its own in the module's tests."""
    examples = {folder.name.replace("-", "_") for folder in (MODULE / "examples").iterdir()}
    assert set() == examples - set(plans)


@pytest.mark.parametrize(
    ("file", "output"), [("betrace-kms-policy.json", "role_policy"), ("betrace-kms-key-policy.json", "key_policy")]
)
def test_policy_by_hand_is_the_same(documents: Mapping[str, Any], file: str, output: str) -> None:
    """So what tests find out about the files holds for Terraform."""
    assert documents[output] == json.loads((ROOT / "deploy/iam" / file).read_text("utf-8"))


def outputs(plan: Any) -> Mapping[str, Any]:
    """Return what an example shows."""
    return {name: output["after"] for name, output in plan["output_changes"].items()}


@pytest.mark.parametrize("example", ["minimal", "irsa", "pod_identity", "multi_region", "all"])
def test_settings_are_those_of_a_daemon(plans: Plans, example: str) -> None:
    """The output `settings` is a configuration that starts, with the keys and tables of the plan."""
    given = outputs(plans[example])["settings"]
    settings, _ = config.resolve([config.from_command_line(given)])
    master_key = planned(plans[example], "aws_kms_key", "master")["arn"]
    tables = [planned(plans[example], "aws_dynamodb_table", name)["name"] for name in ("keys", "branch_keys")]
    assert (master_key, *tables) == (settings.master_key_id, settings.store_table, settings.branch_keys_table)
    assert ("aws", "sealing") == (settings.provider, settings.sealing_key_type)
    regions = {"multi_region": ["us-west-2", "eu-west-1"], "all": ["us-west-2"]}.get(example, [])
    assert regions == [arn.split(":")[3] for arn in settings.replica_key_ids]


def test_settings_become_a_properties_file(plans: Plans, tmp_path: Path) -> None:
    """The jq program of the README makes one that the daemon reads, with all settings."""
    given = outputs(plans["all"])["settings"]
    [program] = re.findall(r"settings \| jq -r '(.*)' >", (MODULE / "README.md").read_text("utf-8"))
    written = subprocess.run(
        [tool("jq"), "-r", program], input=json.dumps(given), capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "application.properties").write_text(written, "utf-8")
    assert given == config.from_properties(tmp_path / "application.properties").values


def test_role_is_for_the_service_account_of_the_example(plans: Plans) -> None:
    """Either way to it is for one service account of one cluster alone."""
    manifest = (ROOT / "deploy/kubernetes/example/backend/backend.yaml").read_text("utf-8")
    [account] = re.findall(r"^kind: ServiceAccount\nmetadata:\n  name: (\S+)$", manifest, flags=re.MULTILINE)
    trusted = {
        example: json.loads(planned(plans[example], "aws_iam_role", "daemon")["assume_role_policy"])["Statement"]
        for example in ("irsa", "pod_identity", "all")
    }
    [irsa], [pod_identity] = trusted["irsa"], trusted["pod_identity"]
    issuer = "oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
    assert {
        f"{issuer}:aud": "sts.amazonaws.com",
        f"{issuer}:sub": f"system:serviceaccount:default:{account}",
    } == irsa["Condition"]["StringEquals"]
    assert {
        "aws:RequestTag/eks-cluster-arn": "arn:aws:eks:us-east-1:123456789012:cluster/production",
        "aws:RequestTag/kubernetes-namespace": "default",
        "aws:RequestTag/kubernetes-service-account": account,
    } == pod_identity["Condition"]["StringEquals"]
    assert ["ServiceAccount", "PodIdentity"] == [statement["Sid"] for statement in trusted["all"]]
    association = planned(plans["pod_identity"], "aws_eks_pod_identity_association", "daemon")
    assert ("production", "default", account) == tuple(
        association[name] for name in ("cluster_name", "namespace", "service_account")
    )


def test_endpoints_let_through_what_the_role_may_do(documents: Mapping[str, Any], plans: Plans) -> None:
    """The role's actions on its resources, by the role alone; and others only if the endpoints are shared."""
    role = documents["role_policy"]["Statement"]
    for service in ("kms", "dynamodb"):
        statements = documents[f"{service}_endpoint_policy"]["Statement"]
        assert {(action, str(each["Resource"])) for each in statements for action in each["Action"]} == {
            (action, str(each["Resource"])) for each in role for action in each["Action"] if action.startswith(service)
        }
        assert all(
            each["Condition"]["ArnEquals"]["aws:PrincipalArn"].endswith(":role/betrace-kms") for each in statements
        )
    shared = json.loads(planned(plans["all"], "aws_vpc_endpoint", "gateway")["policy"])["Statement"][-1]
    account = "123456789012"
    assert {"aws:PrincipalAccount": account, "aws:ResourceAccount": account} == shared["Condition"]["StringEquals"]
    made = [each["index"] for each in plans["all"]["resource_changes"] if each["type"] == "aws_vpc_endpoint"]
    assert ["dynamodb", "kms", "sts"] == sorted(made)


def test_notifications_name_what_exists(plans: Plans) -> None:
    """Alarms have one result, measure operations that there are, and lead to a heading; events are calls of KMS."""
    troubleshooting = (ROOT / "docs/troubleshooting.md").read_text("utf-8").lower()
    operations = get_session().get_service_model("dynamodb").operation_names
    changes = plans["all"]["resource_changes"]
    alarms = [each["change"]["after"] for each in changes if each["type"] == "aws_cloudwatch_metric_alarm"]
    assert 5 == len(alarms)
    for alarm in alarms:
        assert 1 == sum(query["return_data"] for query in alarm["metric_query"])
        measured = [metric for query in alarm["metric_query"] for metric in query["metric"]]
        assert {each["dimensions"].get("Operation", "Scan") for each in measured} <= set(operations)
        anchor = alarm["alarm_description"].rpartition("docs/troubleshooting.md#")[2]
        assert f"\n### {anchor}\n" in troubleshooting
    rules = {each["index"]: each["change"]["after"] for each in changes if each["type"] == "aws_cloudwatch_event_rule"}
    names = json.loads(rules["key-changes"]["event_pattern"])["detail"]["eventName"]
    assert {"DisableKey", "PutKeyPolicy", "ScheduleKeyDeletion"} <= set(names)
    assert set() == set(names) - set(get_session().get_service_model("kms").operation_names)
    assert "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS" == rules["denied-calls"]["state"]


def call(name: str, **detail: Any) -> Any:
    """Return an event of a call to KMS, as CloudTrail tells EventBridge of it."""
    caller = {"type": "AssumedRole", "sessionContext": {"sessionIssuer": {"arn": detail.pop("role", "another")}}}
    return {
        "source": "aws.kms",
        "detail-type": "AWS API Call via CloudTrail",
        "detail": {"eventSource": "kms.amazonaws.com", "eventName": name, "userIdentity": caller, **detail},
    }


def test_events_are_those_that_a_person_should_hear_of(documents: Mapping[str, Any]) -> None:
    """EventBridge's own matcher, Event Ruler, finds changes of the key, and calls denied to the role or on the key."""
    from tests.interop.java_sdk import FOLDER, java  # late: importing it takes two seconds

    key = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
    role = "arn:aws:iam::123456789012:role/betrace-kms"
    on_key, on_another = ([{"type": "AWS::KMS::Key", "ARN": arn}] for arn in (key, f"{key[:-1]}c"))
    denial = "User: another is not authorized to perform: kms:Decrypt on resource: {} because no policy allows it"
    events = [
        ("key_changes", True, call("ScheduleKeyDeletion", resources=on_key)),
        ("key_changes", True, call("PutKeyPolicy", resources=on_key)),
        ("key_changes", False, call("ScheduleKeyDeletion", resources=on_another)),
        ("key_changes", False, call("Decrypt", resources=on_key)),
        ("denied_calls", True, call("Decrypt", errorCode="AccessDenied", role=role)),
        ("denied_calls", True, call("Decrypt", errorCode="AccessDenied", errorMessage=denial.format(key))),
        ("denied_calls", True, call("DescribeKey", errorCode="AccessDeniedException", resources=on_key)),
        ("denied_calls", False, call("Decrypt", errorCode="AccessDenied", errorMessage=denial.format(f"{key[:-1]}c"))),
        ("denied_calls", False, call("Decrypt", errorCode="ThrottlingException", role=role)),
        ("denied_calls", False, call("Decrypt", resources=on_key, role=role)),
    ]
    lines = [f"{json.dumps(documents[f'{name}_pattern'])}\t{json.dumps(event)}" for name, _, event in events]
    command = [*java(), str(FOLDER / "Matches.java")]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=100, check=False)
    assert [str(expected).lower() for _, expected, _ in events] == done.stdout.split(), done.stderr


async def test_daemon_runs_on_what_is_planned(plans: Plans, moto: MotoServer, tmp_path: Path) -> None:
    """IAM, KMS and DynamoDB of the emulator take the plan's documents and tables; `keystore init` finds nothing to do.

    A daemon with the output `settings` seals and opens on them, under a branch key.
    """
    settings, suffix = dict(outputs(plans["irsa"])["settings"]), secrets.token_hex(4)
    iam, kms, dynamodb = (
        boto3.client(name, region_name=REGION, endpoint_url=moto.url) for name in ("iam", "kms", "dynamodb")
    )
    role, policy = (planned(plans["irsa"], f"aws_iam_{kind}", "daemon") for kind in ("role", "policy"))
    iam.create_role(RoleName=role["name"] + suffix, AssumeRolePolicyDocument=role["assume_role_policy"])
    iam.create_policy(PolicyName=policy["name"] + suffix, PolicyDocument=policy["policy"])
    key = planned(plans["irsa"], "aws_kms_key", "master")
    described = kms.create_key(
        KeySpec=key["customer_master_key_spec"],
        KeyUsage=key["key_usage"],
        MultiRegion=key["multi_region"],
        Policy=key["policy"],
    )["KeyMetadata"]
    settings["aws.kms.master-key-id"] = described["Arn"]
    for setting, name in (("kms.store.table", "keys"), ("kms.branch-keys.table", "branch_keys")):
        table = planned(plans["irsa"], "aws_dynamodb_table", name)
        settings[setting] = table["name"] + suffix
        roles = [("HASH", table["hash_key"]), ("RANGE", table["range_key"])]
        dynamodb.create_table(
            TableName=settings[setting],
            BillingMode=table["billing_mode"],
            AttributeDefinitions=[
                {"AttributeName": each["name"], "AttributeType": each["type"]} for each in table["attribute"]
            ],
            KeySchema=[{"AttributeName": attribute, "KeyType": role} for role, attribute in roles],
            DeletionProtectionEnabled=table["deletion_protection_enabled"],
        )
        recovery = {"PointInTimeRecoveryEnabled": table["point_in_time_recovery"][0]["enabled"]}
        dynamodb.update_continuous_backups(TableName=settings[setting], PointInTimeRecoverySpecification=recovery)
    names = [settings["kms.store.table"], settings["kms.branch-keys.table"]]
    arguments = ["--table", names[0], "--branch-keys-table", names[1], "--region", REGION, "--endpoint", moto.url]
    found = await asyncio.to_thread(CliRunner().invoke, init, arguments)
    arns = [f"arn:aws:dynamodb:{REGION}:123456789012:table/{name}" for name in names]
    assert [
        line
        for name, arn in zip(names, arns, strict=True)
        for line in (f"the table {name} is there", f"{arn} is ready")
    ] == found.output.splitlines()[:-1]
    given = {config.environment_name(name).lower(): value for name, value in settings.items()}
    endpoints = {"aws_kms_endpoint": moto.url, "kms_store_endpoint": moto.url, "kms_encryption_mode": "branch-key"}
    async with running(tmp_path, **given, **endpoints) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        sealed = await client.encrypt("acme", b"secret", {"record": "17"})
        assert b"secret" == (await client.decrypt("acme", sealed.ciphertext_blob, {"record": "17"})).plaintext
        assert described["Arn"] == sealed.key_id
