"""Reads a Dockerfile and its ignore file, as far as ours go: no heredocs, and no flag of COPY but --from."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its name, the image that it begins with, and its instructions as (name, rest)."""

    name: str
    image: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, name: str) -> str:
        """Return the rest of the last instruction of that name, which is the one that counts."""
        return [rest for instruction, rest in self.instructions if instruction == name][-1]

    def command(self, name: str) -> Sequence[str]:
        """Return the command of ENTRYPOINT, CMD or HEALTHCHECK: a JSON list, or a line for the shell."""
        line = self.last(name)
        line = line.partition("CMD ")[2] if line.startswith("--") else line
        listed: Sequence[str] = json.loads(line) if line.startswith("[") else ["/bin/sh", "-c", line]
        return listed

    def values(self, name: str) -> Mapping[str, str]:
        """Return what the instructions ENV or LABEL set, as it is written."""
        return dict(pair for instruction, rest in self.instructions if instruction == name for pair in pairs(rest))


def pairs(rest: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of one ENV or LABEL."""
    for word in shlex.split(rest):
        name, _, value = word.partition("=")
        yield name, value


def stages(text: str) -> Sequence[Stage]:
    """Return the stages in their order; the last is the image. Comments are left out and continued lines joined."""
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    for name, _, rest in (line.partition(" ") for line in lines if line.strip()):
        if name == "FROM":
            image, _, stage = Template(rest).substitute(arguments).partition(" AS ")
            found.append(Stage(stage, image))
        elif found:
            found[-1].instructions.append((name, rest.strip()))
        else:
            arguments.update(pairs(rest))
    return found


def admitted(text: str) -> Sequence[str]:
    """Return what an ignore file lets through, which keeps everything else out."""
    rules = [rule for rule in text.splitlines() if rule and not rule.startswith("#")]
    if rules[0] != "*":
        raise ValueError("an ignore file begins by keeping everything out: *")
    return [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
