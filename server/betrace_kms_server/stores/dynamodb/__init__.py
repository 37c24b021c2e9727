"""The key store in a DynamoDB table."""
