output "key_policy" {
  description = "Key policy of the master key and of its replicas."
  value       = jsonencode(local.key_policy)
}

output "role_policy" {
  description = "IAM policy of the daemon's role."
  value       = jsonencode(local.role_policy)
}

output "trust_policy" {
  description = "Trust policy of the daemon's role."
  value       = jsonencode(local.trust_policy)
}

output "kms_endpoint_policy" {
  description = "Policy of the VPC endpoint of KMS."
  value       = jsonencode(local.kms_endpoint_policy)
}

output "sts_endpoint_policy" {
  description = "Policy of the VPC endpoint of STS."
  value       = jsonencode(local.sts_endpoint_policy)
}

output "dynamodb_endpoint_policy" {
  description = "Policy of the VPC endpoint of DynamoDB."
  value       = jsonencode(local.dynamodb_endpoint_policy)
}

output "key_changes_pattern" {
  description = "EventBridge pattern of calls that change who may use the master key, or whether."
  value       = jsonencode(local.key_changes_pattern)
}

output "denied_calls_pattern" {
  description = "EventBridge pattern of calls to KMS that were denied to the role, or on the master key."
  value       = jsonencode(local.denied_calls_pattern)
}
