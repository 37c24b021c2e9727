"""The drill of hostile callers in short form; its figures are those of `make drill-hostile`."""

from tests.drills.hostile import MOST_MEGABYTES, attacked


def test_unread_answers_are_bounded() -> None:
    """80 answers of 4 MiB that are not read would hold 1,600 MB; others are served meanwhile."""
    figures = attacked("unread answers", 0.2)
    assert not figures.failures
    assert figures.peak < MOST_MEGABYTES


def test_idle_connections_leave_room_for_others() -> None:
    """400 idle connections to a daemon that may open 256 files: calls and new connections are served."""
    figures = attacked("idle connections", 0.2, open_files=256)
    assert not figures.failures
