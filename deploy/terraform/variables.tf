variable "name" {
  description = "Name of the role, the policy and what is to be told apart in the console; with alias/ before it, of the key."
  type        = string
  default     = "betrace-kms"
}

variable "tags" {
  description = "Tags of everything that takes tags."
  type        = map(string)
  default     = {}
}

# The key

variable "multi_region" {
  description = "Make the master key a multi-Region key. It cannot be changed later: that would be another key."
  type        = bool
  default     = true
}

variable "replica_regions" {
  description = "Regions that get a replica of the master key, the nearest first in the daemon's order: see docs/multi-region.md."
  type        = list(string)
  default     = []

  validation {
    condition     = var.multi_region || length(var.replica_regions) == 0
    error_message = "Only a multi-Region key has replicas: leave multi_region true, or replica_regions empty."
  }
}

variable "key_administrators" {
  description = "ARNs of the roles that administer the master key, which must include whoever applies this. The account's IAM policies decide, if it is empty."
  type        = list(string)
  default     = []
}

variable "deletion_window_in_days" {
  description = "How long a key that somebody schedules for deletion can still be rescued."
  type        = number
  default     = 30

  validation {
    condition     = var.deletion_window_in_days >= 7 && var.deletion_window_in_days <= 30
    error_message = "KMS takes 7 to 30 days."
  }
}

variable "former_master_key_arns" {
  description = "Master keys that are still to be used, while everything moves to this one: see docs/master-key-change.md. Their key policies are not changed."
  type        = list(string)
  default     = []
}

# The tables

variable "table_name" {
  description = "Name of the key store's table: kms.store.table."
  type        = string
  default     = "betrace-kms-keys"
}

variable "branch_keys_table_name" {
  description = "Name of the table of branch keys: kms.branch-keys.table."
  type        = string
  default     = "betrace-kms-branch-keys"
}

variable "branch_keys_logical_name" {
  description = "kms.branch-keys.logical-name, if it is not the name of the table of branch keys."
  type        = string
  default     = null
}

variable "allow_shredding" {
  description = "Let the daemon delete branch keys, so that tenants can be shredded: see docs/shredding.md."
  type        = bool
  default     = false
}

variable "table_kms_key_arn" {
  description = "KMS key that encrypts the tables at rest. DynamoDB's own does, if it is null: everything in them is wrapped already."
  type        = string
  default     = null
}

# The role

variable "irsa" {
  description = "Make a role for a Kubernetes service account, which assumes it by the cluster's IAM OIDC provider."
  type = object({
    oidc_provider_arn = string
    namespace         = optional(string, "default")
    service_account   = optional(string, "betrace-backend")
  })
  default = null
}

variable "pod_identity" {
  description = "Make a role for a Kubernetes service account, which assumes it by EKS Pod Identity."
  type = object({
    cluster_name    = string
    namespace       = optional(string, "default")
    service_account = optional(string, "betrace-backend")
  })
  default = null
}

variable "role_arn" {
  description = "The daemon's role, if it exists: of ECS, EC2 or another cluster. Attach the output policy_arn to it."
  type        = string
  default     = null

  validation {
    condition     = (var.role_arn == null) == (var.irsa != null || var.pod_identity != null)
    error_message = "Give irsa or pod_identity or both for a role that is to be made, or else role_arn for one that exists."
  }
}

# The network

variable "endpoints" {
  description = "Make VPC endpoints of KMS, STS (for irsa) and DynamoDB. With `shared`, others in the account may use them too."
  type = object({
    vpc_id                    = string
    subnet_ids                = list(string)
    route_table_ids           = list(string)
    client_security_group_ids = list(string)
    shared                    = optional(bool, false)
  })
  default = null
}

# Notifications

variable "notifications" {
  description = "Tell an SNS topic of alarms, of what CloudTrail records of the key, and of what KMS costs the account beyond a monthly budget in dollars. The topic must let CloudWatch, EventBridge and Budgets publish."
  type = object({
    topic_arn          = string
    monthly_budget_usd = optional(number)
  })
  default = null
}
