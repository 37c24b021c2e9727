"""Documents work as they stand: what a reader would type is run, block by block, or the block says why it is not.

CONTRIBUTING.md has the convention. A line at the end of the run counts the blocks of shells.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.documents.blocks import LANGUAGES, Block, blocks
from tests.documents.daemons import Daemons
from tests.documents.reader import Reader
from tests.interop.tools import ROOT

LEAST = 60
"""Blocks of shells that are run, in all documents together."""
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): blocks(path)
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "examples/**/README.md")
    for path in sorted(ROOT.glob(pattern))
    if "node_modules" not in path.parts
}
WITH_BLOCKS = [name for name, found in DOCUMENTS.items() if any(block.language in LANGUAGES for block in found)]


@pytest.fixture(scope="session")
def daemons(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """Daemons of each kind, started when the first document asks for one."""
    with Daemons(tmp_path_factory.mktemp("daemons"), lambda: request.getfixturevalue("moto")) as found:
        yield found


@pytest.mark.parametrize("document", WITH_BLOCKS)
def test_document(
    document: str, daemons: Daemons, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each of its blocks ends well, and prints what the document shows."""
    ran = skipped = 0
    try:
        with Reader(tmp_path, daemons) as reader:
            for block in DOCUMENTS[document]:
                reader.read(block)
                ran += block.counts and block.runs
                skipped += block.counts and not block.runs
    finally:
        record_property("shell blocks", [ran, skipped])


def test_enough_blocks_are_run() -> None:
    """Blocks that are skipped one after the other leave documents untested: together they have a floor."""
    assert sum(block.counts and block.runs for found in DOCUMENTS.values() for block in found) >= LEAST


TEXT = """\
<!-- daemon: aws -->

```bash
echo one
```

  <!--bash
  echo hidden
  -->

```toml policy.toml
[[rule]]
```

```sh skip="needs a cluster" fails="it does"
kubectl get pods
```

```text output
...
```
"""


def test_blocks_have_what_stands_behind_their_language(tmp_path: Path) -> None:
    """Language, options, the file that is shown, and whether a reader sees it."""
    (tmp_path / "document.md").write_text(TEXT, "utf-8")
    assert [
        Block(1, "daemon", "aws", shown=False),
        Block(3, "bash", "echo one\n"),
        Block(7, "bash", "  echo hidden\n", shown=False),
        Block(11, "toml", "[[rule]]\n", file="policy.toml"),
        Block(15, "sh", "kubectl get pods\n", options={"skip": "needs a cluster", "fails": "it does"}),
        Block(19, "text output", "...\n"),
    ] == blocks(tmp_path / "document.md")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\necho\n", "1: the block does not end"),
        ("\n```bash skipp='x'\n```", "2: skipp=x is none of skip, fails, background"),
        ('```bash skip=""\n```', "1: skip= is none of"),
        ("<!-- daemon: mine -->", "1: daemon is one of local, own, aws, none"),
    ],
)
def test_blocks_that_are_not_well_formed_are_named(text: str, problem: str, tmp_path: Path) -> None:
    """A misspelt option would leave a block unrun without a word."""
    (tmp_path / "document.md").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=problem):
        blocks(tmp_path / "document.md")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\nfalse\necho unreached\n```", r"line 1: the block ended with exit code 1"),
        ('```bash fails="it does not"\ntrue\n```', r"line 1: the block ended with exit code 0"),
        ("```bash\necho one\n```\n```text output\ntwo\n```", r"line 4: this is not what was printed:\none"),
        ("```bash\nONE=1\n```\n```bash\necho $ONE $TWO\n```", r"line 4: .*TWO: unbound variable"),
    ],
)
def test_blocks_that_do_not_do_what_they_say_fail(text: str, problem: str, daemons: Daemons, tmp_path: Path) -> None:
    """The harness itself fails where a document is wrong."""
    (tmp_path / "document.md").write_text(text, "utf-8")
    (tmp_path / "folder").mkdir()
    *before, last = blocks(tmp_path / "document.md")
    with Reader(tmp_path / "folder", daemons) as reader:
        for block in before:
            reader.read(block)
        with pytest.raises(pytest.fail.Exception, match=f"(?s){problem}"):
            reader.read(last)


def test_blocks_change_nothing_in_the_clone(daemons: Daemons, tmp_path: Path) -> None:
    """A document may tell its reader to edit a file: the reader of the test has a copy."""
    (tmp_path / "document.md").write_text("```bash\necho edited | tee -a README.md deploy/iam/*.json\n```", "utf-8")
    (tmp_path / "folder").mkdir()
    with Reader(tmp_path / "folder", daemons) as reader:
        for block in blocks(tmp_path / "document.md"):
            reader.read(block)
    assert (tmp_path / "folder" / "README.md").read_text("utf-8").endswith("edited\n")
    for path in (ROOT / "README.md", *ROOT.glob("deploy/iam/*.json")):
        assert not path.read_text("utf-8").endswith("edited\n")
