"""AWS KMS as a provider."""
