"""The policies that we ship allow what the daemon calls, and nothing else."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import betrace_kms_server
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.dynamodb.writes import Writes
from botocore.session import get_session

ROOT = Path(__file__).parents[2]
SERVER = Path(betrace_kms_server.__file__).parent
OPERATORS = "creation.py"
"""The module that makes tables; the daemon never imports it."""
CLIENTS = ("client", "kms", "_client")
"""What a client of AWS is called where it is called."""
SHREDDING = {"dynamodb:DeleteItem"}
"""What only shredding needs, on the branch key table only."""


def modules(service: str) -> Sequence[Path]:
    """Return the modules of the daemon that call a service."""
    if service == "kms":
        return [SERVER / "providers/aws/provider.py"]
    return [path for path in sorted((SERVER / "stores/dynamodb").glob("*.py")) if path.name != OPERATORS]


def calls(file: Path, service: str) -> Iterator[str]:
    """Yield the action of every call of an AWS client in a module: `self._client.get_item(..)` is GetItem."""
    model = get_session().get_service_model(service)
    names = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): name for name in model.operation_names}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            called_on = node.func.value
            name = called_on.attr if isinstance(called_on, ast.Attribute) else getattr(called_on, "id", "")
            if name in CLIENTS:
                yield names[node.func.attr]


def transaction_parts() -> set[str]:
    """Return the permissions of all that a transaction of ours may consist of: it has none of its own name."""
    key = StoredKey("acme", "0" * 32, "aws", WrappedKey(b"seed", "arn"), bytes(32), "active", 0)
    writes = Writes("keys")
    made = [
        writes.put(key),
        writes.first_active(key),
        writes.next_active(key, key),
        writes.next_generation("acme"),
        writes.rotated(key, 0),
        writes.revoked(key, 0),
        *writes.impossible("acme", "0"),
        *writes.shredding("acme", None, "record"),
    ]
    untried = {name for name in vars(Writes) if not name.startswith("_")} - {
        *("put", "first_active", "next_active", "next_generation", "rotated", "revoked", "impossible", "shredding"),
        "wrapped_anew",  # of UpdateItem, not of a transaction
    }
    assert set() == untried
    return {f"{part}Item" for write in made for part in write}


def needed(service: str) -> set[str]:
    """Return the permissions that the daemon's calls of a service need."""
    actions = {action for file in modules(service) for action in calls(file, service)}
    if "TransactWriteItems" in actions:
        actions = actions - {"TransactWriteItems"} | transaction_parts()
    if "TransactGetItems" in actions:
        actions = actions - {"TransactGetItems"} | {"GetItem"}
    return {f"{service}:{action}" for action in actions}


def statements() -> Mapping[str, Any]:
    """Return the statements of the policy for those who do it by hand, by their names."""
    policy = json.loads((ROOT / "deploy/iam/betrace-kms-policy.json").read_text("utf-8"))
    return {statement["Sid"]: statement for statement in policy["Statement"]}


def terraform() -> str:
    """Return the module's files without their comments."""
    text = "".join(file.read_text("utf-8") for file in sorted((ROOT / "deploy/terraform").glob("*.tf")))
    return re.sub(r"(^|\s)#.*$", "", text, flags=re.MULTILINE)


def test_policy_allows_the_calls_of_kms() -> None:
    """Each action is one that the code calls, and the other way round; all but DescribeKey with a condition."""
    describe, *uses = (statements()[f"BetraceKms{name}"] for name in ("MasterKey", "TenantKeys", "BranchKeyRows"))
    assert {"kms:DescribeKey"} == set(describe["Action"])
    for statement in uses:
        assert needed("kms") == {*describe["Action"], *statement["Action"]}
        assert describe["Resource"] == statement["Resource"]
        assert statement["Condition"]
    assert "Condition" not in describe


def test_policy_allows_the_calls_of_dynamodb() -> None:
    """Each action on the key store's table is one that the code calls, and the other way round."""
    assert needed("dynamodb") - SHREDDING == set(statements()["BetraceKmsKeyStore"]["Action"])


def test_policy_lets_shredding_delete_branch_keys_alone() -> None:
    """It is a statement of its own, which those who shred no tenant leave out."""
    statement = statements()["BetraceKmsShredding"]
    assert needed("dynamodb") & SHREDDING == set(statement["Action"])
    assert statement["Resource"] == statements()["BetraceKmsBranchKeys"]["Resource"]


def test_policy_allows_what_branch_keys_need() -> None:
    """A statement for their table, which those who have none leave out."""
    statement = statements()["BetraceKmsBranchKeys"]
    called = {
        action
        for name in ("branch_keys.py", "table.py")
        for action in calls(SERVER / "stores/dynamodb" / name, "dynamodb")
    }
    transactions = {"TransactGetItems", "TransactWriteItems"}
    assert {f"dynamodb:{action}" for action in called - transactions | {"GetItem", "PutItem"}} - SHREDDING == set(
        statement["Action"]
    )
    assert statement["Resource"].endswith(":table/betrace-kms-branch-keys")


def test_policy_allows_nothing_else() -> None:
    """There are six statements, and no wildcard in any."""
    assert (6, False) == (len(statements()), "*" in json.dumps(statements()))
    assert {"Allow"} == {statement["Effect"] for statement in statements().values()}


def test_terraform_keeps_what_cannot_be_made_again() -> None:
    """Keys and tables have every protection that there is, and the tables the primary key that the daemon asks for."""
    parts = re.split(r"^(?=resource )", terraform(), flags=re.MULTILINE)
    blocks = {name: block for block in parts for name in re.findall(r'^resource "(\w+" "\w+)"', block)}
    table = [
        "prevent_destroy = true",
        "deletion_protection_enabled = true",
        "point_in_time_recovery { enabled = true }",
        'billing_mode = "PAY_PER_REQUEST"',
    ]
    expected = {
        'aws_kms_key" "master': [
            "prevent_destroy = true",
            "enable_key_rotation = true",
            "deletion_window_in_days = var.",
            "policy = module.policies.key_policy",
        ],
        'aws_kms_replica_key" "master': [
            "prevent_destroy = true",
            "deletion_window_in_days = var.",
            "policy = module.policies.key_policy",
        ],
        'aws_dynamodb_table" "keys': [*table, 'hash_key = "tenant_id"', 'range_key = "item"'],
        'aws_dynamodb_table" "branch_keys': [*table, 'hash_key = "branch-key-id"', 'range_key = "type"'],
    }
    text = {name: " ".join(block.split()) for name, block in blocks.items()}
    assert [] == [(name, line) for name, lines in expected.items() for line in lines if line not in text[name]]
    assert not re.search(r"^\s*replica\b", terraform(), flags=re.MULTILINE)


def test_documents_name_the_same_actions() -> None:
    """The table of docs/dynamodb.md has a row for each permission of the key store."""
    rows = re.findall(r"^\| `(dynamodb:\w+)` \|", (ROOT / "docs/dynamodb.md").read_text("utf-8"), flags=re.MULTILINE)
    assert statements()["BetraceKmsKeyStore"]["Action"] == rows


def test_store_says_which_permissions_it_needs() -> None:
    """So does the docstring of the store."""
    docstring = ast.get_docstring(ast.parse((SERVER / "stores/dynamodb/store.py").read_text("utf-8"))) or ""
    assert needed("dynamodb") - SHREDDING == set(re.findall(r"dynamodb:\w+", docstring))
