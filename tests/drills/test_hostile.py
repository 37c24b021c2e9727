"""The drill of hostile callers in short form; its figures are those of `make drill-hostile`."""

import pytest

from tests.drills.hostile import attacked

MOST_MEGABYTES = 320
"""What malloc keeps differs from run to run; without the bound for large answers it is 1,000."""


@pytest.mark.parametrize("name", ["unread answers", "unread answers, closed windows"])
def test_unread_answers_are_bounded(name: str) -> None:
    """80 answers of 4 MiB that are not read would hold 1,000 MB; others are served meanwhile."""
    figures = attacked(name, 0.2)
    assert not figures.failures
    assert figures.peak < MOST_MEGABYTES


def test_idle_connections_leave_room_for_others() -> None:
    """400 idle connections to a daemon that may open 160 files: calls are served, and by a new connection too."""
    figures = attacked("idle connections", 0.2, open_files=160)
    assert not figures.failures
