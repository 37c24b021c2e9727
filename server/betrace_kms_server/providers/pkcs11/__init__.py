"""Provider pkcs11: the master key is in a hardware security module, behind a PKCS#11 library."""
