# What betrace-kms needs in AWS, in one Region: the master key, the tables of wrapped signing keys and branch keys, and a
# policy that allows the daemon to use them and nothing else.
#
# None of the three may be destroyed: without the key nothing that was encrypted can ever be opened, without the tables
# no tenant's signing key exists any more, and nothing opens that branch keys sealed. `terraform destroy` fails, on purpose.

resource "aws_kms_key" "master" {
  description              = "betrace-kms master key"
  key_usage                = "ENCRYPT_DECRYPT"
  customer_master_key_spec = "SYMMETRIC_DEFAULT"
  enable_key_rotation      = true # the ARN stays, and so does the old material for what it wrapped
  deletion_window_in_days  = var.deletion_window_in_days
  multi_region             = var.multi_region
  tags                     = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "master" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.master.key_id
}

# The same as `betrace-kms keystore init` makes. No replicas: see docs/dynamodb.md.
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

  lifecycle {
    prevent_destroy = true
  }
}

# deploy/iam/betrace-kms-policy.json is the same by hand.
data "aws_iam_policy_document" "daemon" {
  statement {
    sid       = "BetraceKmsMasterKey"
    resources = [aws_kms_key.master.arn]
    actions = [
      "kms:Decrypt",
      "kms:DescribeKey",
      "kms:Encrypt",
      "kms:GenerateDataKey",
    ]
  }

  statement {
    sid       = "BetraceKmsKeyStore"
    resources = [aws_dynamodb_table.keys.arn]
    actions = [
      "dynamodb:DescribeContinuousBackups",
      "dynamodb:DescribeTable",
      "dynamodb:GetItem",
      "dynamodb:PutItem",
      "dynamodb:Query",
      "dynamodb:Scan",
      "dynamodb:UpdateItem",
    ]
  }

  statement {
    sid       = "BetraceKmsBranchKeys"
    resources = [aws_dynamodb_table.branch_keys.arn]
    actions = [
      "dynamodb:DescribeContinuousBackups",
      "dynamodb:DescribeTable",
      "dynamodb:GetItem",
      "dynamodb:PutItem",
      "dynamodb:Query",
      "dynamodb:Scan",
    ]
  }

  dynamic "statement" {
    for_each = var.allow_shredding ? [1] : []
    content {
      sid       = "BetraceKmsShredding"
      resources = [aws_dynamodb_table.branch_keys.arn]
      actions = [
        "dynamodb:DeleteItem",
      ]
    }
  }
}

resource "aws_iam_policy" "daemon" {
  name        = var.name
  description = "What the betrace-kms daemon may do"
  policy      = data.aws_iam_policy_document.daemon.json
  tags        = var.tags
}
