# Every policy is a document of ./policies, which needs no provider, so that tests evaluate it as Terraform does.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

module "policies" {
  source = "./policies"

  partition             = data.aws_partition.current.partition
  account_id            = data.aws_caller_identity.current.account_id
  region                = data.aws_region.current.region
  role_arn              = local.role_arn
  key_arns              = concat([aws_kms_key.master.arn], local.replica_key_arns, var.former_master_key_arns)
  key_administrators    = var.key_administrators
  table_arn             = aws_dynamodb_table.keys.arn
  branch_keys_table_arn = aws_dynamodb_table.branch_keys.arn
  logical_name          = local.logical_name
  table_kms_key_arn     = var.table_kms_key_arn
  allow_shredding       = var.allow_shredding
  irsa                  = var.irsa
  pod_identity          = var.pod_identity
  shared_endpoints      = try(var.endpoints.shared, false)
}

locals {
  replica_key_arns = [for region in var.replica_regions : aws_kms_replica_key.master[region].arn]
  logical_name     = coalesce(var.branch_keys_logical_name, var.branch_keys_table_name)
}

resource "aws_iam_policy" "daemon" {
  name        = var.name
  description = "What the betrace-kms daemon may do"
  policy      = module.policies.role_policy
  tags        = var.tags
}
