output "master_key_arn" {
  description = "aws.kms.master-key-id"
  value       = aws_kms_key.master.arn
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

output "policy_arn" {
  description = "Attach it to the daemon's role: the one of eks.amazonaws.com/role-arn in deploy/kubernetes."
  value       = aws_iam_policy.daemon.arn
}
