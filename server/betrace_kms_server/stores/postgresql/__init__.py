"""PostgreSQL as a key store."""
