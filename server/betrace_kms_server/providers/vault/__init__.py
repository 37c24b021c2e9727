"""The transit secrets engine of OpenBao and of HashiCorp Vault."""
