"""What a production check found: one condition, and what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition of a deployment. It is as it must be in production if there is no problem.

    A condition that could not be found out is a problem as well: its sentence begins with "not known".
    """

    name: str
    problem: str = ""
    """One sentence that says what is wrong and what to do."""
