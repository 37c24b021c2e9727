"""When the rotation check runs: the cron expression of `kms.rotation.check-cron`, in the form of Quartz, in UTC.

Fields: seconds, minutes, hours, day-of-month, month, day-of-week, and a year that may be left out. Quartz differs from
Unix cron in more than the seconds, so its rules (class org.quartz.CronExpression) are kept here and nowhere else:

- One of day-of-month and day-of-week is `?`, never both and never neither.
- Weekdays are 1-7 from Sunday; `nL` is the last such weekday of a month, `n#k` the k-th; a lone `L` is Saturday.
- `a/b` runs from a to the end of the field; a range such as FRI-MON or 22-2 wraps around.
- `L` and `#` stand alone in their field. `W`, `C` and `L-n` are refused.

cronsim computes the instants: it knows seconds, `L`, `nL` and `n#k`, and walks backwards too. It gets every field as
a plain list of numbers and knows no years, so those are kept here.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cronsim import CronSim, CronSimError

EXAMPLE = "0 0 2 * * ?"
LOOK_BACK = timedelta(days=5 * 366)
"""How long ago a run may have been missed; long enough for 29 February."""

_SECOND = timedelta(seconds=1)
_ITEM = re.compile(r"(?:\*|(?P<first>\w{1,4})(?:-(?P<last>\w{1,4}))?)(?:/(?P<step>\d{1,4}))?", re.ASCII)
_LAST_WEEKDAY = re.compile(r"(\w{1,4})L", re.ASCII)
_NTH_WEEKDAY = re.compile(r"(\w{1,4})#([1-5])", re.ASCII)


def _refusal(problem: str) -> ValueError:
    return ValueError(f"{problem}; an example is {EXAMPLE}, every day at 02:00 UTC")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    takes: str = ""
    names: tuple[str, ...] = ()

    def values(self, text: str) -> list[int]:
        """Return the numbers that a list of numbers, ranges and steps stands for, sorted."""
        found: set[int] = set()
        size = self.high - self.low + 1
        for item in text.split(","):
            match = _ITEM.fullmatch(item)
            if match is None:
                raise self._misread(item)
            first, last, step = match.group("first", "last", "step")
            if step and (not 1 <= int(step) <= self.high or first in self.names):
                raise self._misread(item)  # Quartz drops a step after a name without a word
            start = self.low if first is None else self.number(first, item)
            end = self.number(last, item) if last else self.high if step or first is None else start
            if end < start:
                if self is _YEAR:
                    raise self._misread(item)
                end += size
            found.update((value - self.low) % size + self.low for value in range(start, end + 1, int(step or 1)))
        return sorted(found)

    def number(self, token: str, item: str) -> int:
        """Return the number that a number or a name stands for; `item` is what it was found in."""
        if token in self.names:
            return self.low + self.names.index(token)
        if not token.isdecimal() or not self.low <= int(token) <= self.high:
            raise self._misread(item)
        return int(token)

    def _misread(self, text: str) -> ValueError:
        named = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        return _refusal(
            f"the {self.name} {text!r} is not understood: this field takes {self.low}-{self.high}{named}, *, lists,"
            f" ranges, steps such as {self.low}/5{self.takes}"
        )


_SECONDS = _Field("seconds", 0, 59)
_MINUTES = _Field("minutes", 0, 59)
_HOURS = _Field("hours", 0, 23)
_DAY = _Field("day-of-month", 1, 31, ", ? and a lone L for the last day, but not W, C or L-3")
_MONTH = _Field("month", 1, 12, names=tuple("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()))
_WEEKDAY = _Field(
    "day-of-week",
    1,
    7,
    " after a number, ? and alone 6L for the last or 6#3 for the third Friday, but not W or C",
    names=tuple("SUN MON TUE WED THU FRI SAT".split()),
)
_YEAR = _Field("year", 1970, 2099, ", where a range does not run backwards")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The instants of one expression; whole seconds, in UTC."""

    text: str
    _cron: str
    _years: tuple[int, ...]

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression. Raises ValueError, with one sentence that says what to fix."""
        parts = text.upper().split()
        if len(parts) not in (6, 7):
            raise _refusal(
                f"a schedule has 6 or 7 fields (seconds, minutes, hours, day-of-month, month, day-of-week, and perhaps"
                f" a year), and this one has {len(parts)}"
            )
        *clock, day, month, weekday = parts[:6]
        if (day == "?") == (weekday == "?"):
            raise _refusal("exactly one of day-of-month and day-of-week, the fields 4 and 6, must be ?")
        fields = [_plain(field, part) for field, part in zip((_SECONDS, _MINUTES, _HOURS), clock, strict=True)]
        fields += [_day(day), _plain(_MONTH, month), _weekday(weekday)]
        schedule = cls(text, " ".join(fields), tuple(_YEAR.values(parts[6] if len(parts) == 7 else "*")))
        try:
            fires = schedule.next_after(datetime(_YEAR.low, 1, 1, tzinfo=UTC) - _SECOND) is not None
        except CronSimError:
            fires = False
        if not fires:
            raise _refusal(f"no day from {_YEAR.low} to {_YEAR.high} fits this schedule, so it would never run")
        return schedule

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first instant after this one, which is aware; None if there is none."""
        instant = instant.astimezone(UTC)
        for year in self._years:
            if year >= instant.year:
                start = max(instant, datetime(year, 1, 1, tzinfo=UTC) - _SECOND)
                found = next(CronSim(self._cron, start), None)
                if found is None or found.year == year:
                    return found
        return None

    def last_before(self, instant: datetime) -> datetime | None:
        """Return the latest instant up to and including this one, which is aware; None if `LOOK_BACK` has none."""
        instant = instant.astimezone(UTC)
        earliest = instant - LOOK_BACK
        beyond = instant.replace(microsecond=0) + _SECOND  # cronsim looks strictly before
        for year in reversed(self._years):
            if earliest.year <= year <= instant.year:
                start = min(beyond, datetime(year + 1, 1, 1, tzinfo=UTC))
                found = next(CronSim(self._cron, start, reverse=True), None)
                if found is None or found.year == year:
                    return found if found and found >= earliest else None
        return None


def _plain(field: _Field, text: str) -> str:
    return ",".join(map(str, field.values(text)))


def _day(text: str) -> str:
    # cronsim wants both day fields to match only if one of them starts with *
    return {"?": "*", "L": "L"}.get(text) or _plain(_DAY, text)


def _weekday(text: str) -> str:
    """Translate to the weekdays of cronsim, which are 0-6 from Sunday."""
    if text == "?":
        return "*"
    if text == "L":
        text = "SAT"
    if match := _LAST_WEEKDAY.fullmatch(text):
        return f"{_WEEKDAY.number(match[1], text) - 1}L"
    if match := _NTH_WEEKDAY.fullmatch(text):
        return f"{_WEEKDAY.number(match[1], text) - 1}#{match[2]}"
    return ",".join(str(number - 1) for number in _WEEKDAY.values(text))
