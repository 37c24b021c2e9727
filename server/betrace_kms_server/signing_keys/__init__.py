"""Use cases of signing keys: sign, verify, rotate, revoke, wrap again."""
