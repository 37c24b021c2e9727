"""Whose AWS credentials a call is made with, in the words of our messages.

The daemon has credentials of its own, and a caller has to know that it is not about theirs. Commands run with those of
whoever runs them: to tell an operator of a daemon's role would send them to the wrong place.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """How a message names the credentials and the role, and what to do if there are none."""

    credentials: str
    role: str
    step_without: str


DAEMON = Holder(
    "the daemon's own AWS credentials",
    "the daemon's role",
    "give the daemon a role, or set its environment or credentials file",
)
OPERATOR = Holder(
    "your AWS credentials",
    "the user or role that you run this command as",
    "log in, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
)
