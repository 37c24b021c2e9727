"""Reads from a document what its reader would type: fenced blocks, in order, each with what a test must know of it.

A line of three backticks opens a block for readers. What only the test needs stands between `<!--bash` and `-->`, which
no renderer shows; so does a line such as `<!-- daemon: aws -->`. Behind the language a block may have the name of the
file that it shows, or options. A reason for `skip` and `fails` is text, because the reader of the source wants one.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHELLS = ("bash", "sh")
LANGUAGES = (*SHELLS, "python")
"""What is run."""
OUTPUT = "text output"
"""What the block before must have printed; `...` stands for anything."""
OPTIONS = ("skip", "fails", "background")
DAEMONS = ("local", "own", "aws", "none")
_OPENING = re.compile(r" *(?:```(?P<shown>.*)|<!-- ?(?P<hidden>(?:bash|sh|python|text output)\b(?:(?!-->).)*))")
_DAEMON = re.compile(r" *<!-- daemon: (\S+) -->")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a document, or, with the language `daemon`, the kind of daemon for what follows."""

    line: int
    language: str
    text: str
    shown: bool = True
    file: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Return whether it is to be run."""
        return self.language in LANGUAGES and "skip" not in self.options

    @property
    def counts(self) -> bool:
        """Return whether it is one of the blocks that readers type into a shell."""
        return self.language in SHELLS and self.shown


def blocks(document: Path) -> Sequence[Block]:
    """Return a document's blocks in order. Raises ValueError that names the line of one that is not well-formed."""
    try:
        return list(_blocks(document.read_text("utf-8").splitlines()))
    except ValueError as cause:
        raise ValueError(f"{document}:{cause}") from cause


def _blocks(lines: Sequence[str]) -> Iterator[Block]:
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        if daemon := _DAEMON.fullmatch(line):
            if daemon[1] not in DAEMONS:
                raise ValueError(f"{number}: daemon is one of {', '.join(DAEMONS)}")
            yield Block(number, "daemon", daemon[1], shown=False)
        elif opening := _OPENING.fullmatch(line):
            shown = opening["shown"] is not None
            text = []
            for _, inside in numbered:
                if inside.strip() == ("```" if shown else "-->"):
                    break
                text.append(inside)
            else:
                raise ValueError(f"{number}: the block does not end")
            yield _block(number, opening["shown"] or opening["hidden"] or "", "\n".join(text) + "\n", shown=shown)


def _block(line: int, info: str, text: str, *, shown: bool) -> Block:
    if info.strip() == OUTPUT:
        return Block(line, OUTPUT, text, shown)
    language, *words = shlex.split(info) or [""]
    file, options = "", {}
    for word in words:
        name, separator, value = word.partition("=")
        if separator and (name not in OPTIONS or not value):
            raise ValueError(f'{line}: {word} is none of {", ".join(OPTIONS)}, each with ="text"')
        if separator:
            options[name] = value
        else:
            file = word
    return Block(line, language, text, shown, file, options)
