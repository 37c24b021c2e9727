"""Fixtures of the tests with official SDKs: their branch key stores, on a new table."""

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.interop.hierarchy import BranchKeyLibrary, OfficialBranchKeys
    from tests.interop.java_sdk import JavaBranchKeys, Jvm
    from tests.moto_server import MotoServer


@pytest.fixture
def official(moto: "MotoServer", kms_key: str) -> "OfficialBranchKeys":
    """Give the official library for Python on a new table that it made."""
    from tests.interop.hierarchy import OfficialBranchKeys  # late: importing it takes two seconds

    found = OfficialBranchKeys(moto.url, kms_key, f"branch-keys-{secrets.token_hex(8)}", "shared-branch-keys")
    found.make_table()
    return found


@pytest.fixture(scope="session")
def jvm(moto: "MotoServer") -> Iterator["Jvm"]:
    """Run the official libraries for Java."""
    from tests.interop.java_sdk import running_jvm

    with running_jvm(moto.url) as jvm:
        yield jvm


@pytest.fixture
def official_java(jvm: "Jvm", moto: "MotoServer", kms_key: str) -> "JavaBranchKeys":
    """Give the official library for Java on a new table that it made."""
    from tests.interop.java_sdk import JavaBranchKeys

    found = JavaBranchKeys(moto.url, kms_key, f"branch-keys-{secrets.token_hex(8)}", "shared-branch-keys", jvm)
    found.make_table()
    return found


@pytest.fixture(params=["python", "java"])
def library(request: pytest.FixtureRequest) -> "BranchKeyLibrary":
    """Give each official library in turn."""
    name = {"python": "official", "java": "official_java"}[request.param]
    found: BranchKeyLibrary = request.getfixturevalue(name)
    return found
