"""The clock skew that validation reports: its sign says which clock is ahead."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from betrace_kms_server.providers.aws.provider import _clock_skew


@pytest.mark.parametrize("ahead", [-600, 600])
def test_skew_is_positive_where_our_clock_is_ahead(ahead: int) -> None:
    """An answer that is dated ten minutes ago means that our clock is ten minutes ahead."""
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=ahead), usegmt=True)
    skew = _clock_skew({"ResponseMetadata": {"HTTPHeaders": {"date": date}}})
    assert skew == pytest.approx(ahead, abs=60)


@pytest.mark.parametrize("headers", [{}, {"date": ""}, {"date": "yesterday"}])
def test_skew_is_unknown_without_a_date(headers: dict[str, str]) -> None:
    """An answer without a date that can be read says nothing about the clock."""
    assert _clock_skew({"ResponseMetadata": {"HTTPHeaders": headers}}) is None
