"""Tables: what a start refuses and warns of, and how an operator makes one.

moto does not know global tables as DescribeTable tells of them, nor tables that are not yet active. There the answer of
the real client is amended before our code sees it (`amended`); everything else is moto's.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import pytest
from betrace_kms_server.cli.keystore_init import branch_keys_table_of, init
from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.stores.dynamodb import client as bounds
from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys
from betrace_kms_server.stores.dynamodb.client import ClientFactory, dynamodb_client
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.store import open_dynamodb
from botocore.awsrequest import AWSResponse
from click.testing import CliRunner
from structlog.testing import capture_logs

from tests.aws_proxy import aws_proxy
from tests.contract.samples import stored_key
from tests.moto_server import ACCOUNT, REGION, MotoServer

ON_DEMAND = {"BillingMode": "PAY_PER_REQUEST"}
STRING_KEYS = {
    "AttributeDefinitions": [
        {"AttributeName": "tenant_id", "AttributeType": "S"},
        {"AttributeName": "item", "AttributeType": "S"},
    ],
    "KeySchema": [
        {"AttributeName": "tenant_id", "KeyType": "HASH"},
        {"AttributeName": "item", "KeyType": "RANGE"},
    ],
}


@pytest.fixture
async def aws(moto: MotoServer) -> AsyncIterator[Any]:
    """Give a client of DynamoDB."""
    async with aioboto3.Session().client("dynamodb", region_name=REGION, endpoint_url=moto.url) as client:
        yield client


@pytest.fixture
def name() -> str:
    """Give the name of a table that is not there."""
    return f"keys-{secrets.token_hex(8)}"


async def make(moto: MotoServer, name: str, client_factory: ClientFactory = dynamodb_client) -> list[str]:
    """Make a table as an operator does; return what was told."""

    async def sleep(seconds: float) -> None:
        assert seconds == 1.0

    made = create_table(name, region=REGION, endpoint=moto.url, client_factory=client_factory, sleep=sleep)
    return [done async for done in made]


async def start(moto: MotoServer, name: str, client_factory: ClientFactory = dynamodb_client) -> list[Any]:
    """Open the store as a daemon does at its start; return what was logged."""
    with capture_logs() as logs:
        async with open_dynamodb(name, region=REGION, endpoint=moto.url, client_factory=client_factory):
            return list(logs)


def amended(change: Callable[[dict[str, Any]], None]) -> ClientFactory:
    """Return a factory of real clients whose DescribeTable is changed before it is seen."""

    @asynccontextmanager
    async def factory(region: str, endpoint: str | None) -> AsyncIterator[Any]:
        async with dynamodb_client(region, endpoint) as client:
            client.meta.events.register(
                "after-call.dynamodb.DescribeTable",
                lambda parsed, **_: change(parsed["Table"]) if "Table" in parsed else None,
            )
            yield client

    return factory


def answering(action: str, *codes: str) -> ClientFactory:
    """Return a factory of real clients that get these errors for the first calls of an action."""
    left = list(codes)

    @asynccontextmanager
    async def factory(region: str, endpoint: str | None) -> AsyncIterator[Any]:
        def answer(**_: Any) -> Any:
            return (AWSResponse("", 400, {}, None), {"Error": {"Code": left.pop(0)}}) if left else None

        async with dynamodb_client(region, endpoint) as client:
            client.meta.events.register(f"before-call.dynamodb.{action}", answer)
            yield client

    return factory


# Start


async def test_ready_table_is_opened_without_a_word(moto: MotoServer, name: str) -> None:
    """There is nothing to warn of in a table that an operator made by our command."""
    await make(moto, name)
    assert [] == await start(moto, name)


async def test_missing_table_is_refused(moto: MotoServer, name: str) -> None:
    """The text leads to the command that makes one, and to a backup where there was one."""
    with pytest.raises(StartRefused, match=f"no DynamoDB table {name} in {REGION}.* run betrace-kms keystore init"):
        await start(moto, name)


@pytest.mark.parametrize(
    ("definitions", "schema"),
    [
        ([("tenant_id", "S")], [("tenant_id", "HASH")]),
        ([("tenant_id", "S"), ("item", "N")], [("tenant_id", "HASH"), ("item", "RANGE")]),
        ([("tenant_id", "S"), ("item", "S")], [("item", "HASH"), ("tenant_id", "RANGE")]),
        ([("tenant_id", "S"), ("key_id", "S")], [("tenant_id", "HASH"), ("key_id", "RANGE")]),
    ],
)
async def test_table_of_another_kind_is_refused(
    moto: MotoServer, name: str, aws: Any, definitions: list[tuple[str, str]], schema: list[tuple[str, str]]
) -> None:
    """A table with another primary key is somebody else's, for a start and for an operator."""
    await aws.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": each, "AttributeType": kind} for each, kind in definitions],
        KeySchema=[{"AttributeName": each, "KeyType": role} for each, role in schema],
        **ON_DEMAND,
    )
    for opened in (start(moto, name), make(moto, name)):
        with pytest.raises(StartRefused, match=f"{name} is no key store of betrace-kms"):
            await opened


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"GlobalTableVersion": "2019.11.21", "Replicas": [{"RegionName": "eu-west-1"}]}, "the last writer wins"),
        ({"Replicas": [{"RegionName": "eu-west-1"}], "MultiRegionConsistency": "EVENTUAL"}, "the last writer wins"),
        ({"GlobalTableVersion": "2017.11.29"}, "the last writer wins"),
        ({"Replicas": [{"RegionName": "eu-west-1"}], "MultiRegionConsistency": "STRONG"}, "takes no transactions"),
    ],
)
async def test_global_table_is_refused(moto: MotoServer, name: str, told: Mapping[str, Any], problem: str) -> None:
    """A table that several Regions write to would lose keys, or take none; neither a start nor an operator uses it."""
    await make(moto, name)
    replicated = amended(lambda described: described.update(told))
    for opened in (start(moto, name, replicated), make(moto, name, replicated)):
        with pytest.raises(StartRefused, match=problem):
            await opened


async def test_table_that_others_made_may_be_in_use_already(moto: MotoServer, name: str, aws: Any) -> None:
    """Only who made the table knows that it is new; that `keystore init` is run on it later does not make it so."""
    await aws.create_table(TableName=name, **STRING_KEYS, **ON_DEMAND)
    await make(moto, name)
    async with open_dynamodb(name, region=REGION, endpoint=moto.url) as store:
        assert await store.sealing_key_type() == "encryption"


async def test_table_that_was_never_replicated_is_opened(moto: MotoServer, name: str) -> None:
    """An empty list of replicas is none."""
    await make(moto, name)
    assert [] == await start(moto, name, amended(lambda described: described.update(Replicas=[])))


@pytest.mark.parametrize("status", ["CREATING", "DELETING", "INACCESSIBLE_ENCRYPTION_CREDENTIALS", "ARCHIVED"])
async def test_table_that_is_not_usable_is_refused(moto: MotoServer, name: str, status: str) -> None:
    """A table that cannot be written to now is told with its state."""
    await make(moto, name)
    with pytest.raises(StartRefused, match=f"{name} is {status}"):
        await start(moto, name, amended(lambda described: described.update(TableStatus=status)))


async def test_table_that_is_being_updated_is_opened(moto: MotoServer, name: str) -> None:
    """While its settings change, a table is read and written as ever."""
    await make(moto, name)
    assert [] == await start(moto, name, amended(lambda described: described.update(TableStatus="UPDATING")))


async def test_unprotected_table_is_warned_of(moto: MotoServer, name: str, aws: Any) -> None:
    """Without deletion protection and point-in-time recovery a start warns of both, and goes on."""
    await aws.create_table(TableName=name, **STRING_KEYS, **ON_DEMAND)
    logs = await start(moto, name)
    assert ["warning", "warning"] == [each["log_level"] for each in logs]
    assert ["deletion protection", "point-in-time recovery"] == [
        word for each in logs for word in ("deletion protection", "point-in-time recovery") if word in each["event"]
    ]
    assert {f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name}"} == {each["table"] for each in logs}


@pytest.mark.parametrize("code", ["AccessDeniedException", "UnknownOperationException"])
async def test_recovery_that_cannot_be_looked_at_is_warned_of(moto: MotoServer, name: str, code: str) -> None:
    """A role or an emulator without DescribeContinuousBackups does not keep the daemon from starting."""
    await make(moto, name)
    (warning,) = await start(moto, name, answering("DescribeContinuousBackups", code))
    assert ("warning", True) == (warning["log_level"], "is not known" in warning["event"])
    assert "dynamodb:DescribeContinuousBackups" in warning["problem"] or code == warning["problem"]


@pytest.mark.parametrize(
    ("verdict", "problem"),
    [
        ("deny", "DynamoDB denies dynamodb:DescribeTable on {name}"),
        ("throttle", "DynamoDB throttles"),
        ("stall", "no answer from DynamoDB"),
        ("drop", "no answer from DynamoDB"),
    ],
)
async def test_table_that_cannot_be_looked_at_is_refused(
    moto: MotoServer, name: str, verdict: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that cannot look at the table ends soon, and tells why."""
    if verdict == "stall":
        monkeypatch.setattr(bounds, "CALL_SECONDS", 0.5)
    with aws_proxy(moto.url) as proxy:
        proxy.always(verdict)
        with pytest.raises(StartRefused, match=f"{name} cannot be described: {problem.format(name=name)}"):
            async with open_dynamodb(name, region=REGION, endpoint=proxy.url):
                pass


async def test_credentials_that_are_missing_are_told(
    moto: MotoServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts without credentials is told so."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    with pytest.raises(StartRefused, match="own AWS credentials are missing"):
        await start(moto, name)


@pytest.mark.parametrize("wrong", ["", "no name", "x" * 256])
async def test_name_that_no_table_can_have_is_refused(moto: MotoServer, wrong: str) -> None:
    """What AWS or the SDK finds malformed is told as the setting that it is."""
    with pytest.raises(StartRefused, match=r"kms\.store\.table"):
        await start(moto, wrong)


# Creation


async def test_table_is_made_as_keys_need_it(moto: MotoServer, name: str, aws: Any) -> None:
    """On-demand billing, deletion protection and point-in-time recovery; each thing that was done is told."""
    arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name}"
    assert [
        f"made the table {name}: on-demand billing, deletion protection on",
        "turned point-in-time recovery on",
        f"{arn} is ready",
    ] == await make(moto, name)
    described = (await aws.describe_table(TableName=name))["Table"]
    assert ("PAY_PER_REQUEST", True) == (
        described["BillingModeSummary"]["BillingMode"],
        described["DeletionProtectionEnabled"],
    )
    backups = (await aws.describe_continuous_backups(TableName=name))["ContinuousBackupsDescription"]
    assert "ENABLED" == backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"]


async def test_making_a_table_again_changes_nothing(moto: MotoServer, name: str) -> None:
    """A table that is as it should be is left as it is, its keys included."""
    key = stored_key()
    await make(moto, name)
    async with open_dynamodb(name, region=REGION, endpoint=moto.url) as store:
        await store.create(key)
        assert [f"the table {name} is there", f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name} is ready"] == (
            await make(moto, name)
        )
        assert [key] == await store.all("acme")


async def test_what_a_table_lacks_is_turned_on(moto: MotoServer, name: str, aws: Any) -> None:
    """A table that somebody made by hand gets what it lacks, and then a start has nothing to warn of."""
    await aws.create_table(TableName=name, **STRING_KEYS, **ON_DEMAND)
    assert ["turned deletion protection on", "turned point-in-time recovery on"] == (await make(moto, name))[1:-1]
    assert [] == await start(moto, name)


async def test_table_that_another_makes_at_once_is_no_error(moto: MotoServer, name: str, aws: Any) -> None:
    """A creation whose first try landed, or where somebody else was faster, goes on with the table that is there."""
    await aws.create_table(TableName=name, **STRING_KEYS, **ON_DEMAND)
    hidden = answering("DescribeTable", "ResourceNotFoundException")
    assert f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name} is ready" == (await make(moto, name, hidden))[-1]


async def test_creation_waits_until_the_table_is_active(moto: MotoServer, name: str) -> None:
    """Point-in-time recovery is turned on when the table is there, and its backups too."""
    statuses = ["CREATING", "CREATING"]

    def coming(described: dict[str, Any]) -> None:
        described["TableStatus"] = statuses.pop() if statuses else "ACTIVE"

    assert f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name} is ready" == (await make(moto, name, amended(coming)))[-1]
    late = answering("UpdateContinuousBackups", *["ContinuousBackupsUnavailableException"] * 3)
    assert "turned point-in-time recovery on" in await make(moto, f"{name}-late", late)


async def test_table_that_never_becomes_active_is_told(moto: MotoServer, name: str) -> None:
    """Waiting ends."""
    with pytest.raises(StoreUnavailable, match="does not become ACTIVE"):
        await make(moto, name, amended(lambda described: described.update(TableStatus="CREATING")))


async def test_backups_that_never_come_up_are_told(moto: MotoServer, name: str) -> None:
    """So does waiting for backups."""
    never = answering("UpdateContinuousBackups", *["ContinuousBackupsUnavailableException"] * 1000)
    with pytest.raises(StoreUnavailable, match="cannot be turned on"):
        await make(moto, name, never)


@pytest.mark.parametrize("action", ["CreateTable", "UpdateContinuousBackups"])
async def test_operator_without_rights_is_told_which(moto: MotoServer, name: str, action: str) -> None:
    """What an operator may not do is named."""
    with pytest.raises(StoreUnavailable, match=f"DynamoDB denies dynamodb:{action}"):
        await make(moto, name, answering(action, "AccessDeniedException"))


# The verb


def test_init_makes_a_table_that_a_daemon_opens(moto: MotoServer, name: str) -> None:
    """It prints what it did, a line each."""
    arguments = ["--table", name, "--region", REGION, "--endpoint", moto.url]
    first, second = CliRunner().invoke(init, arguments), CliRunner().invoke(init, arguments)
    assert (0, 0) == (first.exit_code, second.exit_code), first.output
    arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name}"
    assert f"made the table {name}: on-demand billing, deletion protection on" == first.output.splitlines()[0]
    branch_keys = f"{name}-branch-keys"
    assert [
        f"the table {name} is there",
        f"{arn} is ready",
        f"the table {branch_keys} is there",
        f"{arn}-branch-keys is ready",
        f"set kms.store.table={name} and kms.branch-keys.table={branch_keys}",
    ] == second.output.splitlines()


async def test_init_makes_the_table_of_branch_keys_too(moto: MotoServer, name: str) -> None:
    """It has the official schema and the protections of the key store's; neither table passes for the other."""
    branch_keys = f"{name}-of-branches"
    arguments = ["--table", name, "--branch-keys-table", branch_keys, "--region", REGION, "--endpoint", moto.url]
    result = await asyncio.to_thread(CliRunner().invoke, init, arguments)
    assert (0, f"made the table {branch_keys}: on-demand billing, deletion protection on") == (
        result.exit_code,
        result.output.splitlines()[3],
    )
    with capture_logs() as logs:
        async with open_branch_keys(branch_keys, region=REGION, endpoint=moto.url):
            pass
        with pytest.raises(StartRefused, match=r"primary key is another one.* kms\.branch-keys\.table"):
            async with open_branch_keys(name, region=REGION, endpoint=moto.url):
                pass
        with pytest.raises(StartRefused, match=r"primary key is another one.* kms\.store\.table"):
            await start(moto, branch_keys)
    assert [] == logs


def test_init_reads_the_settings_of_the_daemon(moto: MotoServer, name: str) -> None:
    """The environment of a daemon is enough; the key's region is the table's if there is no other."""
    environment = {"KMS_STORE_TABLE": name, "KMS_STORE_ENDPOINT": moto.url, "AWS_KMS_REGION": REGION}
    result = CliRunner().invoke(init, [], env=environment)
    assert 0 == result.exit_code
    assert f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name} is ready" in result.output.splitlines()


@pytest.mark.parametrize(
    ("table", "expected"),
    [("betrace-kms-keys", "betrace-kms-branch-keys"), ("prod", "prod-branch-keys"), ("-keys", "-branch-keys")],
)
def test_name_of_the_table_of_branch_keys(table: str, expected: str) -> None:
    """It is told from that of the key store's table, as in the documents."""
    assert expected == branch_keys_table_of(table)


def test_init_tells_what_keeps_it(moto: MotoServer) -> None:
    """What cannot be done is one line on stderr and exit code 2, without a traceback."""
    result = CliRunner().invoke(init, ["--table", "", "--region", REGION, "--endpoint", moto.url])
    assert (2, "") == (result.exit_code, result.stdout)
    (line,) = result.stderr.splitlines()
    assert line.startswith("betrace-kms: kms.store.table '' is no name of a DynamoDB table")


def test_init_speaks_of_the_operators_credentials(moto: MotoServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the command is no daemon: neither its credentials nor its role are what is wrong."""
    arguments = ["--table", name, "--region", REGION]
    with aws_proxy(moto.url) as proxy:
        proxy.always("deny", "CreateTable")
        denied = CliRunner().invoke(init, [*arguments, "--endpoint", proxy.url])
        proxy.always("expired")
        expired = CliRunner().invoke(init, [*arguments, "--endpoint", proxy.url])
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    missing = CliRunner().invoke(init, [*arguments, "--endpoint", moto.url])
    for refused, words in (
        (denied, "denies dynamodb:CreateTable on .*: allow it to the user or role that you run this command as"),
        (expired, "your AWS credentials for the key store are missing, expired or refused"),
        (missing, "your AWS credentials are missing: log in, or set AWS_PROFILE"),
    ):
        assert (2, False) == (refused.exit_code, "daemon" in refused.stderr)
        assert re.search(words, refused.stderr), refused.stderr


@pytest.mark.parametrize(
    ("table", "branch_keys", "expected"),
    [
        ("one", "one", "kms.store.table and kms.branch-keys.table are both one: they are two tables"),
        ("ab", "cde", "kms.store.table 'ab' is no name of a DynamoDB table"),
        ("a table", "cde", "kms.store.table 'a table' is no name of a DynamoDB table"),
        ("abc", "d/e/f", "kms.branch-keys.table 'd/e/f' is no name of a DynamoDB table"),
    ],
)
def test_init_makes_no_table_if_a_name_is_wrong(moto: MotoServer, table: str, branch_keys: str, expected: str) -> None:
    """Both names are checked before the first table is made: a table under deletion protection is hard to remove."""
    arguments = ["--table", table, "--branch-keys-table", branch_keys, "--region", REGION, "--endpoint", moto.url]
    result = CliRunner().invoke(init, arguments)
    assert (2, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith(f"betrace-kms: {expected}")


@pytest.mark.parametrize("endpoint", ["localhost:8000", "http://", "http://user:secret@localhost:8000"])
def test_init_refuses_an_endpoint_that_is_none(name: str, endpoint: str) -> None:
    """It says what one looks like, and does not repeat what may hold a password."""
    result = CliRunner().invoke(init, ["--table", name, "--region", REGION, "--endpoint", endpoint])
    assert (2, "") == (result.exit_code, result.stdout)
    assert "is no endpoint: write http://HOST:PORT or https://HOST" in result.stderr
    assert "secret" not in result.stderr
