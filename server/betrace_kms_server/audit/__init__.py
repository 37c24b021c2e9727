"""The audit trail: a hash chain of lines in a file that rotates under it."""
