"""Where settings come from: one frozen object (settings.py), and for each value its source.

Sources, strongest first: command line, environment, mounted folders (one file for each name, as Kubernetes mounts a
ConfigMap or a Secret), a properties file, defaults. An empty value counts as unset.

Names under `kms.`, `betrace.kms.` and `aws.kms.` that we do not know are refused, because a typo must not fall back to
a default; not so in the environment, where Kubernetes puts names such as KMS_SERVICE_HOST.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import javaproperties
from pydantic import ValidationError

from betrace_kms_server.config.settings import Settings as Settings
from betrace_kms_server.core.errors import StartRefused

_OURS = ("kms.", "betrace.kms.", "aws.kms.")
_WORDS = {"string_pattern_mismatch": "is not of the form that it must have: see docs/configuration.md"}

NAMES: Mapping[str, str] = {field.alias or name: name for name, field in Settings.model_fields.items()}
"""Public name -> attribute."""


@dataclass(frozen=True, slots=True)
class Source:
    """Values of one place, under their public names."""

    name: str
    values: Mapping[str, str]


def environment_name(name: str) -> str:
    """Return the environment variable of a setting, by MicroProfile Config's rule."""
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def from_environment(environ: Mapping[str, str]) -> Source:
    """Return the settings in the environment; other variables are nobody's business."""
    return Source("environment", {name: environ[key] for name in NAMES if (key := environment_name(name)) in environ})


def from_command_line(pairs: Mapping[str, str]) -> Source:
    """Return the settings given on the command line. Raises StartRefused for an unknown name."""
    return Source("command line", _known(pairs, "command line", strict=True))


def from_folder(folder: Path) -> Source:
    """Return the settings of a mounted folder. Raises StartRefused for an unknown name of ours."""
    try:
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith("..") and path.is_file()]
        values = {path.name: path.read_text("utf-8").strip() for path in files}
    except (OSError, UnicodeDecodeError) as cause:
        raise StartRefused(f"configuration folder {folder} cannot be read: {cause}") from cause
    return Source(str(folder), _known(values, str(folder)))


def from_properties(file: Path) -> Source:
    """Return the settings of a Java properties file. Raises StartRefused for an unknown name of ours."""
    try:
        with file.open("rb") as stream:
            values = javaproperties.load(stream)
    except (OSError, ValueError) as cause:
        raise StartRefused(f"configuration file {file} cannot be read: {cause}") from cause
    return Source(str(file), _known(values, str(file)))


def _known(values: Mapping[str, str], where: str, *, strict: bool = False) -> Mapping[str, str]:
    unknown = sorted(name for name in values if name not in NAMES and (strict or name.startswith(_OURS)))
    if unknown:
        raise StartRefused("\n".join(f"{name} (from {where}): no such setting" for name in unknown))
    return {name: value for name, value in values.items() if name in NAMES}


def resolve(sources: Iterable[Source]) -> tuple[Settings, Mapping[str, str]]:
    """Return the settings, and for each public name where its value came from. `sources` are strongest first.

    Raises StartRefused with one line for each value that is impossible.
    """
    values: dict[str, str] = {}
    origins = dict.fromkeys(NAMES, "default")
    for source in sources:
        for name, value in source.values.items():
            if "\0" in value:
                raise StartRefused(f"{name} (from {source.name}): holds a zero byte")
            if value.strip() and name not in values:
                values[name] = value.strip()
                origins[name] = source.name
    try:
        return Settings.model_validate(values), origins
    except ValidationError as cause:
        lines = []
        for problem in cause.errors(include_url=False, include_input=False):
            message = _WORDS.get(problem["type"], problem["msg"]).removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            lines.append(f"{name} (from {origins[name]}): {message}" if name else message)
        raise StartRefused("\n".join(lines)) from None


def described(settings: Settings, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (public name, value, origin) of every setting, sorted. No setting holds a secret: endpoints refuse one."""
    rows = []
    for name, attribute in sorted(NAMES.items()):
        value = getattr(settings, attribute)
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        elif isinstance(value, bool):
            value = str(value).lower()
        rows.append((name, "" if value is None else str(value), origins[name]))
    return rows
