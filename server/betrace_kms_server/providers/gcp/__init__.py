"""Cloud KMS of Google Cloud."""
