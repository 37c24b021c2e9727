"""KMS faults do not reach warm tenants, and an outage ends with one call. `make test-faults` takes longer over it."""

from pathlib import Path

import pytest

from tests.faults.kms import drill, problems
from tests.faults.race import emulator


@pytest.mark.timeout(180)
async def test_kms_faults_leave_warm_tenants_alone(tmp_path: Path) -> None:
    """A 500, a page of HTML and half a body: all warm calls served, at most 3 attempts, one call for 1,000 waiters."""
    with emulator() as (url, arn):
        _, *faults = await drill(tmp_path, url, arn, ("error", "html", "half"), 1.0)
    assert [problem for figures in faults for problem in problems(figures)] == []
