# Replicas of the master key in two Regions, for a daemon that runs in us-east-1.

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

  role_arn        = var.role_arn
  replica_regions = ["us-west-2", "eu-west-1"]
}

output "settings" {
  description = "Settings of the daemon."
  value       = module.betrace_kms.settings
}
