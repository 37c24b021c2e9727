variable "partition" {
  description = "Partition of the account: aws, aws-cn or aws-us-gov."
  type        = string
}

variable "account_id" {
  description = "Account of the key, the tables and the role."
  type        = string
}

variable "region" {
  description = "Region of the tables."
  type        = string
}

variable "role_arn" {
  description = "Role of the daemon."
  type        = string
}

variable "key_arns" {
  description = "The master key, its replicas, and former master keys."
  type        = list(string)
}

variable "key_administrators" {
  description = "Who administers the master key; the account, if empty."
  type        = list(string)
}

variable "table_arn" {
  description = "Table of the key store."
  type        = string
}

variable "branch_keys_table_arn" {
  description = "Table of branch keys."
  type        = string
}

variable "logical_name" {
  description = "kms.branch-keys.logical-name."
  type        = string
}

variable "table_kms_key_arn" {
  description = "Key that encrypts the tables at rest, or null for DynamoDB's own."
  type        = string
}

variable "allow_shredding" {
  description = "Let the daemon delete branch keys."
  type        = bool
}

variable "irsa" {
  description = "Service account that assumes the role by the cluster's OIDC provider, or null."
  type = object({
    oidc_provider_arn = string
    namespace         = string
    service_account   = string
  })
}

variable "pod_identity" {
  description = "Service account that assumes the role by EKS Pod Identity, or null."
  type = object({
    cluster_name    = string
    namespace       = string
    service_account = string
  })
}

variable "shared_endpoints" {
  description = "Let other principals of the account use the VPC endpoints, for resources of the account."
  type        = bool
}
