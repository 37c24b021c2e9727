"""The names of settings, and which unknown names are meant as ours.

A name that somebody meant as ours must not be dropped without a word: the daemon would start with a default, and the
default provider is local. Names of the backend that shares the file are none of our business.
"""

import re
from collections.abc import Mapping

from betrace_kms_server.config.settings import Settings

NAMES: Mapping[str, str] = {field.alias or name: name for name, field in Settings.model_fields.items()}
"""Public name -> attribute."""

_PREFIXES = ("kms.", "betrace.kms.", "aws.kms.")
_STEMS = ("kms", "betrace", "betrace.kms", "aws.kms")
"""What nested YAML leaves of our names."""
_PROFILE = re.compile(r"%[^.]*\.")
_EDGES = re.compile(r"^[^a-z0-9%]+|[^a-z0-9]+$")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name)


_BY_LETTERS = {_letters(name): name for name in NAMES}


def _plain(name: str) -> str:
    return _PROFILE.sub("", _EDGES.sub("", name.casefold()), count=1)


def meant(name: str) -> str | None:
    """Return the setting that differs from `name` only by case, separators, quotes or a profile, or None."""
    return _BY_LETTERS.get(_letters(_plain(name)))


def looks_like_ours(name: str) -> bool:
    """Return whether a name in a shared file is a setting of ours, or is meant as one."""
    plain = _plain(name)
    words = tuple(re.split(r"[^a-z0-9]+", plain)[:2])
    return (
        name.startswith(_PREFIXES)
        or plain.startswith(_PREFIXES)
        or plain in _STEMS
        or words in {("betrace", "kms"), ("aws", "kms")}
        or meant(name) is not None
    )


def no_such_setting(name: str, origin: str) -> str:
    """Return the line that refuses a name."""
    suggestion = meant(name)
    advice = f": write it as {suggestion}" if suggestion else ""
    return f"{name} (from {origin}): no such setting{advice}"
