"""What the provider and the key store for AWS share."""
