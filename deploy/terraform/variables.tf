variable "name" {
  description = "Name of the policy and, with alias/ before it, of the key."
  type        = string
  default     = "betrace-kms"
}

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

variable "allow_shredding" {
  description = "Let the daemon delete branch keys, so that tenants can be shredded: see docs/shredding.md."
  type        = bool
  default     = false
}

variable "multi_region" {
  description = "Make the master key a multi-Region key. It cannot be changed later: that would be another key."
  type        = bool
  default     = true
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

variable "tags" {
  description = "Tags of the key, the tables and the policy."
  type        = map(string)
  default     = {}
}
