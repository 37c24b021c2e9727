"""The server's verbs of betrace-kms."""
