"""`python -m betrace_kms_client` is the command `betrace-kms`."""

from betrace_kms_command import main

if __name__ == "__main__":
    main()
