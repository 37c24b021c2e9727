# A role for the service account of deploy/kubernetes, which gets it by the EKS Pod Identity Agent. The service account has
# no annotation then.

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

variable "cluster_name" {
  description = "The EKS cluster, with the add-on eks-pod-identity-agent."
  type        = string
}

module "betrace_kms" {
  source = "../.."

  pod_identity = { cluster_name = var.cluster_name }
}

output "settings" {
  description = "Settings of the daemon."
  value       = module.betrace_kms.settings
}
