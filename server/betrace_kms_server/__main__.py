"""`python -m betrace_kms_server` is `betrace-kms serve`."""

import sys

from betrace_kms_command import main

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
