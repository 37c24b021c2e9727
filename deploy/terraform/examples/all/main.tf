# Everything that the module makes, with a VPC and a cluster that exist.

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

variable "cluster_name" {
  description = "The EKS cluster, with the add-on eks-pod-identity-agent."
  type        = string
}

variable "vpc_id" {
  description = "The cluster's VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets of the endpoints of KMS and STS, one in each zone."
  type        = list(string)
}

variable "route_table_ids" {
  description = "Route tables of the subnets of the pods."
  type        = list(string)
}

variable "client_security_group_ids" {
  description = "Security groups of the nodes or pods."
  type        = list(string)
}

variable "key_administrators" {
  description = "Roles that administer the key, with the one that applies this."
  type        = list(string)
}

variable "table_kms_key_arn" {
  description = "KMS key that encrypts the tables."
  type        = string
}

variable "former_master_key_arn" {
  description = "The master key from before."
  type        = string
}

resource "aws_sns_topic" "notifications" {
  name = "betrace-kms"
}

data "aws_caller_identity" "current" {}

# Whoever is to hear of it subscribes to the topic; these are the services that publish. EventBridge takes no conditions in
# the policy of a topic.
resource "aws_sns_topic_policy" "notifications" {
  arn = aws_sns_topic.notifications.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "AlarmsAndBudgets"
        Effect    = "Allow"
        Principal = { Service = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com"] }
        Action    = "sns:Publish"
        Resource  = aws_sns_topic.notifications.arn
        Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
      },
      {
        Sid       = "Events"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sns:Publish"
        Resource  = aws_sns_topic.notifications.arn
      },
    ]
  })
}

module "betrace_kms" {
  source = "../.."

  name               = "betrace-kms"
  tags               = { service = "betrace-kms" }
  replica_regions    = ["us-west-2"]
  key_administrators = var.key_administrators
  allow_shredding    = true
  table_kms_key_arn  = var.table_kms_key_arn

  former_master_key_arns   = [var.former_master_key_arn]
  branch_keys_logical_name = "betrace-kms"

  irsa         = { oidc_provider_arn = var.oidc_provider_arn, namespace = "betrace" }
  pod_identity = { cluster_name = var.cluster_name, namespace = "betrace" }

  endpoints = {
    vpc_id                    = var.vpc_id
    subnet_ids                = var.subnet_ids
    route_table_ids           = var.route_table_ids
    client_security_group_ids = var.client_security_group_ids
    shared                    = true
  }

  notifications = {
    topic_arn          = aws_sns_topic.notifications.arn
    monthly_budget_usd = 100
  }
}

output "settings" {
  description = "Settings of the daemon."
  value       = module.betrace_kms.settings
}

output "role_arn" {
  description = "The daemon's role."
  value       = module.betrace_kms.role_arn
}
