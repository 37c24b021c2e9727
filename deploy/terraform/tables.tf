# The tables of wrapped signing keys and of branch keys, the same as `betrace-kms keystore init` makes.
#
# Neither may be destroyed: without them no tenant's signing key exists any more, and nothing opens that branch keys
# sealed. No replicas: see docs/dynamodb.md.

resource "aws_dynamodb_table" "keys" {
  name                        = var.table_name
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "tenant_id"
  range_key                   = "item"
  deletion_protection_enabled = true
  tags                        = var.tags

  attribute {
    name = "tenant_id"
    type = "S"
  }

  attribute {
    name = "item"
    type = "S"
  }

  point_in_time_recovery {
    enabled = true
  }

  dynamic "server_side_encryption" {
    for_each = var.table_kms_key_arn[*]
    content {
      enabled     = true
      kms_key_arn = server_side_encryption.value
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

# The schema of the AWS Encryption SDKs' branch key stores: see docs/encryption.md.
resource "aws_dynamodb_table" "branch_keys" {
  name                        = var.branch_keys_table_name
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "branch-key-id"
  range_key                   = "type"
  deletion_protection_enabled = true
  tags                        = var.tags

  attribute {
    name = "branch-key-id"
    type = "S"
  }

  attribute {
    name = "type"
    type = "S"
  }

  point_in_time_recovery {
    enabled = true
  }

  dynamic "server_side_encryption" {
    for_each = var.table_kms_key_arn[*]
    content {
      enabled     = true
      kms_key_arn = server_side_encryption.value
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}
