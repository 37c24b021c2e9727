output "master_key_arn" {
  description = "aws.kms.master-key-id"
  value       = aws_kms_key.master.arn
}

output "replica_key_arns" {
  description = "aws.kms.replica-key-ids, with commas between them."
  value       = local.replica_key_arns
}

output "table_name" {
  description = "kms.store.table"
  value       = aws_dynamodb_table.keys.name
}

output "table_arn" {
  description = "ARN of the key store's table."
  value       = aws_dynamodb_table.keys.arn
}

output "branch_keys_table_name" {
  description = "kms.branch-keys.table"
  value       = aws_dynamodb_table.branch_keys.name
}

output "branch_keys_table_arn" {
  description = "ARN of the table of branch keys."
  value       = aws_dynamodb_table.branch_keys.arn
}

output "role_arn" {
  description = "The daemon's role: with irsa, aws.role-arn of the ConfigMap (docs/kubernetes.md)."
  value       = local.role_arn
}

output "policy_arn" {
  description = "What the daemon may do. Attach it to its role, if the role was not made here."
  value       = aws_iam_policy.daemon.arn
}

output "settings" {
  description = "Settings of the daemon, by their names in docs/configuration.md."
  value = { for name, value in {
    "betrace.kms.provider"            = "aws"
    "aws.kms.region"                  = data.aws_region.current.region
    "aws.kms.master-key-id"           = aws_kms_key.master.arn
    "aws.kms.replica-key-ids"         = join(",", local.replica_key_arns)
    "aws.kms.decrypt-key-ids"         = join(",", var.former_master_key_arns)
    "kms.store"                       = "dynamodb"
    "kms.store.table"                 = aws_dynamodb_table.keys.name
    "kms.branch-keys.table"           = aws_dynamodb_table.branch_keys.name
    "kms.branch-keys.logical-name"    = local.logical_name
    "kms.encryption.sealing-key-type" = "sealing" # the tables are new, and do not say so: see docs/sealing-keys.md
  } : name => value if value != "" }
}
