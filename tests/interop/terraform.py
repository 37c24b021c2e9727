"""Terraform on copies of deploy/terraform: with the schema of the AWS provider, or without any provider."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.tools import PATH, ROOT

MODULE = ROOT / "deploy/terraform"


@dataclass(frozen=True, slots=True)
class Terraform:
    """Terraform in a folder, which has been initialised there. No state, and no setting of the user, is involved."""

    command: str
    folder: Path
    environ: Mapping[str, str]

    def __call__(self, *arguments: str) -> str:
        """Run a subcommand, and fail unless it succeeds; returns what it wrote to stdout."""
        done = subprocess.run(
            [self.command, *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def terraform(source: Path, folder: Path, environ: Mapping[str, str] | None = None) -> Terraform:
    """Copy a module into a new folder and initialise it. Skips the test where there is no Terraform, also in CI.

    Its licence keeps it out of Debian and of every registry that `make` installs from.
    """
    command = shutil.which("terraform", path=PATH)
    if command is None:
        pytest.skip("terraform is not installed: get it from HashiCorp")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "AWS_"))}
    ours |= {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **(environ or {})}
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    made = Terraform(command, folder, ours)
    made("init", "-input=false", "-no-color")
    return made


def policies(folder: Path, **variables: Any) -> Mapping[str, Any]:
    """Apply deploy/terraform/policies, which has no resources; returns the documents by the names of its outputs."""
    values = {
        "partition": "aws",
        "account_id": "123456789012",
        "region": "us-east-1",
        "role_arn": "arn:aws:iam::123456789012:role/betrace-kms",
        "key_arns": ["arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"],
        "key_administrators": [],
        "table_arn": "arn:aws:dynamodb:us-east-1:123456789012:table/betrace-kms-keys",
        "branch_keys_table_arn": "arn:aws:dynamodb:us-east-1:123456789012:table/betrace-kms-branch-keys",
        "logical_name": "betrace-kms-branch-keys",
        "table_kms_key_arn": None,
        "allow_shredding": True,
        "irsa": None,
        "pod_identity": None,
        "shared_endpoints": False,
        **variables,
    }
    run = terraform(MODULE / "policies", folder)
    (folder / "terraform.tfvars.json").write_text(json.dumps(values), "utf-8")
    run("apply", "-auto-approve", "-input=false", "-no-color")
    outputs = json.loads(run("output", "-json"))
    return {name: json.loads(output["value"]) for name, output in outputs.items()}
