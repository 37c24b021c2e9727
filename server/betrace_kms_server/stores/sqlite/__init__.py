"""The key store in a SQLite file."""
