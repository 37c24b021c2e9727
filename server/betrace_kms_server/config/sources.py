"""Where settings come from: one frozen object (settings.py), and for each value its source.

Sources, strongest first: command line, environment, mounted folders (one file for each name, as Kubernetes mounts a
ConfigMap or a Secret), a properties file, defaults. An empty value counts as unset.

A source must not be dropped without a word, because the default provider is local: a name that is meant as ours and is
unknown is refused (names.py), and so is a file or folder that has content and gives no setting. Not so in the
environment, where Kubernetes sets names such as KMS_SERVICE_HOST: there `unused_variables` lists what to warn about.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from betrace_kms_server.config.names import NAMES as NAMES
from betrace_kms_server.config.names import looks_like_ours, meant, no_such_setting
from betrace_kms_server.config.properties import Entry, looks_like_yaml, parse_properties, read_text
from betrace_kms_server.config.settings import Settings as Settings
from betrace_kms_server.core.errors import StartRefused

_WORDS = {"string_pattern_mismatch": "is not of the form that it must have: see docs/configuration.md"}
_NOT_SETTINGS = ("KMS_CONFIG_FILE", "KMS_CONFIG_DIR")
_OF_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)")
"""What Kubernetes sets for a service such as `kms`."""


@dataclass(frozen=True, slots=True)
class Source:
    """Values of one place, under their public names, and the lines that they are on if the place has lines."""

    name: str
    values: Mapping[str, str]
    lines: Mapping[str, int] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Return where a value came from, for people."""
        line = self.lines.get(name)
        return self.name if line is None else f"{self.name}, line {line}"


def environment_name(name: str) -> str:
    """Return the environment variable of a setting, by MicroProfile Config's rule."""
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def from_environment(environ: Mapping[str, str]) -> Source:
    """Return the settings in the environment; other variables are left alone."""
    return Source("environment", {name: environ[key] for name in NAMES if (key := environment_name(name)) in environ})


def unused_variables(environ: Mapping[str, str]) -> Sequence[tuple[str, str | None]]:
    """Return variables that look like settings and are none, each with the variable that it may be meant as."""
    known = {*map(environment_name, NAMES), *_NOT_SETTINGS}
    found = []
    for variable in sorted(set(environ) - known):
        setting = meant(variable)
        ours = variable.startswith(("KMS_", "BETRACE_KMS_", "AWS_KMS_")) and not _OF_KUBERNETES.search(variable)
        if setting or ours:
            found.append((variable, environment_name(setting) if setting else None))
    return found


def from_command_line(pairs: Mapping[str, str]) -> Source:
    """Return the settings given on the command line. Raises StartRefused for an unknown name."""
    _refuse([no_such_setting(name, "command line") for name in sorted(pairs) if name not in NAMES])
    return Source("command line", pairs)


def from_folder(folder: Path) -> Source:
    """Return the settings of a mounted folder. Raises StartRefused for an unknown name of ours."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        ours = [path for path in paths if looks_like_ours(path.name)]
        _refuse([no_such_setting(path.name, str(folder)) for path in ours if path.name not in NAMES])
        values = {path.name: read_text(path).strip() for path in ours}
    except (OSError, ValueError) as cause:
        raise StartRefused(f"configuration folder {folder} cannot be read: {cause}") from cause
    if paths and not values:
        raise StartRefused(
            f"configuration folder {folder} holds no setting, but {paths[0].name}: name each file like its setting,"
            " such as betrace.kms.provider; a properties file is given by --config"
        )
    return Source(str(folder), values)


def from_properties(file: Path) -> Source:
    """Return the settings of a Java properties file. Raises StartRefused for an unknown name of ours."""
    try:
        text = read_text(file, otherwise="iso-8859-1")
        entries = parse_properties(text)
    except (OSError, ValueError) as cause:
        raise StartRefused(f"configuration file {file} cannot be read: {cause}") from cause
    values = {entry.name: entry for entry in entries if entry.name in NAMES}
    _refuse([problem for entry in entries if (problem := _problem_of(entry, str(file), values))])
    if text.strip() and not values:
        kind = "it looks like YAML, so " if looks_like_yaml(text) else ""
        raise StartRefused(
            f"configuration file {file} holds no setting: {kind}write NAME=VALUE on each line, such as"
            " betrace.kms.provider=aws, or leave the file out"
        )
    return Source(
        str(file),
        {name: entry.value for name, entry in values.items()},
        {name: entry.line for name, entry in values.items()},
    )


def _problem_of(entry: Entry, file: str, values: Mapping[str, Entry]) -> str | None:
    origin = f"{file}, line {entry.line}"
    swallowed = next((name for name in entry.continued_by if name != entry.name and looks_like_ours(name)), None)
    if swallowed is not None:
        return f"{swallowed} (from {origin}): the backslash before it makes it a part of {entry.name}: remove it"
    if entry.name not in NAMES:
        return no_such_setting(entry.name, origin) if looks_like_ours(entry.name) else None
    last = values[entry.name]
    if last.value != entry.value:
        return f"{entry.name} (from {origin}): line {last.line} gives another value: remove one of them"
    return None


def _refuse(lines: Sequence[str]) -> None:
    if lines:
        raise StartRefused("\n".join(lines))


def _problem_in(value: str) -> str | None:
    """Return why a value is not what its writer meant, or None. No setting's value has any of these."""
    if "\0" in value:
        return "holds a zero byte"
    if not value.isprintable():
        return "holds a line break, a control character or bytes that are not UTF-8: write it on one line, in UTF-8"
    if value[0] in "\"'" or value[-1] in "\"'":
        return "is in quotes: remove them"
    if re.search(r"\s[#!;](\s|$)|\s//\s", value):
        return "is followed by a comment: put the comment on a line of its own"
    if "${" in value:
        return "holds ${, and expressions are not read: write the value itself"
    return None


def resolve(sources: Iterable[Source]) -> tuple[Settings, Mapping[str, str]]:
    """Return the settings, and for each public name where its value came from. `sources` are strongest first.

    Raises StartRefused with one line for each value that is impossible.
    """
    values: dict[str, str] = {}
    origins = dict.fromkeys(NAMES, "default")
    problems = []
    for source in sources:
        for name, value in source.values.items():
            text = value.strip()
            if not text:
                continue
            if problem := _problem_in(text):
                problems.append(f"{name} (from {source.origin(name)}): {problem}")
            if name not in values:
                values[name] = text
                origins[name] = source.origin(name)
    _refuse(problems)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as cause:
        lines = []
        for error in cause.errors(include_url=False, include_input=False):
            message = _WORDS.get(error["type"], error["msg"]).removeprefix("Value error, ")
            name = str(error["loc"][0]) if error["loc"] else ""
            lines.append(f"{name} (from {origins[name]}): {message}" if name else message)
        raise StartRefused("\n".join(lines)) from None
    if not settings.uses("aws"):
        _refuse(
            [
                f"{name} (from {origins[name]}): betrace.kms.provider is {settings.provider} (from"
                f" {origins['betrace.kms.provider']}): set betrace.kms.provider=aws, or remove {name}"
                for name in sorted(values)
                if name.startswith("aws.kms.")
            ]
        )
    return settings, origins


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
