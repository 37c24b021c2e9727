"""What the script `betrace-kms` and `python -m betrace_kms_client` start, apart from the command itself.

The command's imports take a good part of a second, and Ctrl-C during them would end in a traceback. So this module
imports nothing else before it can handle that.

What an import makes stays, so the garbage collector, which would search it for garbage again and again, begins when the
verb does: that saves a daemon a tenth of its start.
"""

import gc
import sys

INTERRUPTED = 130
"""The exit code of a command that SIGINT ended, as shells have it."""


def main() -> None:
    """Run the command line of this process."""
    gc.disable()
    try:
        from betrace_kms_client.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("betrace-kms: interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    command(prog_name="betrace-kms")  # whatever started it: usage, and the variable of shell completion, go by it
