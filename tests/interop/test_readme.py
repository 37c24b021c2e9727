"""What the README says of targets and settings is so. tests/documents runs its blocks."""

import re

from tests.interop.tools import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def test_the_two_commands_are_targets() -> None:
    """make run and make test stand on the first screen and exist."""
    makefile = (ROOT / "Makefile").read_text()
    first_screen = "\n".join(README.splitlines()[:24])
    for target in ("run", "test"):
        assert f"make {target} " in first_screen
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_configuration_table_is_what_the_code_says() -> None:
    """Names, defaults and environment variables of the README's table."""
    from betrace_kms_server.config import sources as config

    defaults = {name: value for name, value, _ in config.described(*config.resolve([]))}
    rows = re.findall(r"^\| `([a-z.-]+)` \| (?:`([^`]*)`)? ?\| `([A-Z_]+)` \|$", README, re.MULTILINE)
    assert len(rows) == 9
    for name, default, variable in rows:
        assert (default, variable) == (defaults[name], config.environment_name(name))
