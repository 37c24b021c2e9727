# Key, tables and policy for a role that exists, such as a task role of ECS.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0, < 7.0"
    }
  }
}

provider "aws" {
  region = "us-east-1"
}

variable "role_arn" {
  description = "The daemon's role."
  type        = string
}

module "betrace_kms" {
  source = "../.."

  role_arn = var.role_arn
}

output "settings" {
  description = "Settings of the daemon."
  value       = module.betrace_kms.settings
}

output "policy_arn" {
  description = "To be attached to the role."
  value       = module.betrace_kms.policy_arn
}
