"""Names and verbs that are imported late are all there, and `health` imports little."""

import gc
import os
import subprocess
import sys
from importlib import import_module

import betrace_kms_client
import click
import pytest
from betrace_kms_client import cli
from click.testing import CliRunner


def test_every_public_name_is_there() -> None:
    """As the package lists them, and no others."""
    assert set(betrace_kms_client._HOMES) == set(betrace_kms_client.__all__)
    for name in betrace_kms_client.__all__:
        home = import_module(f"betrace_kms_client.{betrace_kms_client._HOMES[name]}")
        assert getattr(home, name) is getattr(betrace_kms_client, name)
    assert set(betrace_kms_client.__all__) <= set(dir(betrace_kms_client))
    with pytest.raises(AttributeError, match="has no attribute 'KmsCleint'"):
        _ = betrace_kms_client.KmsCleint


def test_every_verb_is_there() -> None:
    """Under its own name."""
    context = click.Context(cli.main)
    for verb in cli._HOMES:
        command = cli.main.get_command(context, verb)
        assert command is not None
        assert verb == command.name


def test_health_needs_no_client() -> None:
    """What a probe starts every few seconds imports neither the clients nor cryptography nor the server."""
    program = (
        "import sys; from betrace_kms_client.cli import main; main(['health', '--help'], standalone_mode=False);"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in"
        " ('betrace_kms_server', 'cryptography', 'betrace_kms_envelope', 'tabulate', 'betrace_kms_evidence')"
        " or name.endswith('_client')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "['betrace_kms_client']" == done.stdout.splitlines()[-1]


@pytest.mark.parametrize("line", ["betrace-kms ", "betrace-kms encrypt --te"])
def test_completion_imports_no_server(line: str) -> None:
    """Each press of Tab starts the command, so it imports no more than the verb whose options it lists."""
    program = (
        "import atexit, sys; from betrace_kms_command import main;"
        "atexit.register(lambda: print([name for name in sys.modules if name.startswith('betrace_kms_server')]));"
        "main()"
    )
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_BETRACE_KMS_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ | words, check=True
    )
    *completed, imported = done.stdout.splitlines()
    assert ({"plain,serve", "plain,--tenant"} & set(completed) != set(), "[]") == (True, imported)


@pytest.mark.parametrize("verb", ["version", "health", "serve", "no-such-verb"])
def test_garbage_is_collected_when_the_verb_begins(verb: str) -> None:
    """Only imports do without the collector: a daemon that never collected would grow."""
    gc.disable()
    try:
        CliRunner().invoke(cli.main, [verb, "--help"])
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
