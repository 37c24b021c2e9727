# What betrace-kms needs in AWS, in one Region: the master key, the table of wrapped signing keys, and a policy that
# allows the daemon to use them and nothing else.
#
# Neither the key nor the table may be destroyed: without the one nothing that was encrypted can ever be opened, without
# the other no tenant's signing key exists any more. `terraform destroy` fails on both, on purpose.

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
}

resource "aws_iam_policy" "daemon" {
  name        = var.name
  description = "What the betrace-kms daemon may do"
  policy      = data.aws_iam_policy_document.daemon.json
  tags        = var.tags
}
