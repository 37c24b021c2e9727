"""betrace-kms: the key-management daemon. ARCHITECTURE.md draws how its modules depend on each other."""
