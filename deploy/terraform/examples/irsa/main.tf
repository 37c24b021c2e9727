# A role for the service account of deploy/kubernetes, which assumes it by the cluster's OIDC provider.

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

variable "oidc_provider_arn" {
  description = "The cluster's IAM OIDC provider."
  type        = string
}

module "betrace_kms" {
  source = "../.."

  irsa = { oidc_provider_arn = var.oidc_provider_arn }
}

output "settings" {
  description = "Settings of the daemon."
  value       = module.betrace_kms.settings
}

output "role_arn" {
  description = "aws.role-arn of the ConfigMap (docs/kubernetes.md)."
  value       = module.betrace_kms.role_arn
}
