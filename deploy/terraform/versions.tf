terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0, < 7.0" # from 6.0 on a resource may name its Region, as the replicas do
    }
  }
}
