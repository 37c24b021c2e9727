"""Azure Key Vault and Azure Managed HSM."""
