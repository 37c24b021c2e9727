# What passes a VPC endpoint: the daemon's calls, and with shared_endpoints also those of the rest of the account to
# resources of the account.

locals {
  neighbours = [for account in var.shared_endpoints ? [var.account_id] : [] : {
    Sid       = "SameAccount"
    Effect    = "Allow"
    Principal = "*"
    Action    = "*"
    Resource  = "*"
    Condition = { StringEquals = { "aws:PrincipalAccount" = account, "aws:ResourceAccount" = account } }
  }]

  of_the_role = {
    Principal = "*"
    Condition = { ArnEquals = { "aws:PrincipalArn" = var.role_arn } }
  }

  # The role's policies have the conditions on contexts; here it is who asks for which key.
  kms_endpoint_policy = {
    Version = "2012-10-17"
    Statement = concat([merge(local.of_the_role, {
      Sid      = "BetraceKms"
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"]
      Resource = var.key_arns
    })], local.neighbours)
  }

  dynamodb_endpoint_policy = {
    Version   = "2012-10-17"
    Statement = concat([for table in local.tables : merge(table, local.of_the_role)], local.neighbours)
  }

  # AssumeRoleWithWebIdentity is not signed, so there is no principal yet.
  sts_endpoint_policy = {
    Version = "2012-10-17"
    Statement = concat([{
      Sid       = "BetraceKms"
      Effect    = "Allow"
      Principal = "*"
      Action    = ["sts:AssumeRoleWithWebIdentity"]
      Resource  = [var.role_arn]
    }], local.neighbours)
  }
}
