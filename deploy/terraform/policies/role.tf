# What the daemon's role may do, and who may assume it. deploy/iam/betrace-kms-policy.json is the first by hand.

locals {
  table_actions = [
    "dynamodb:DescribeContinuousBackups",
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:Query",
    "dynamodb:Scan",
  ]

  tables = concat(
    [
      {
        Sid      = "BetraceKmsKeyStore"
        Effect   = "Allow"
        Action   = concat(local.table_actions, ["dynamodb:UpdateItem"])
        Resource = var.table_arn
      },
      {
        Sid      = "BetraceKmsBranchKeys"
        Effect   = "Allow"
        Action   = local.table_actions
        Resource = var.branch_keys_table_arn
      },
    ],
    [for sid in var.allow_shredding ? ["BetraceKmsShredding"] : [] : {
      Sid      = sid
      Effect   = "Allow"
      Action   = ["dynamodb:DeleteItem"]
      Resource = var.branch_keys_table_arn
    }],
  )

  role_policy = {
    Version = "2012-10-17"
    Statement = concat(
      [for use in local.uses : merge(
        { for name, value in use : name => value if value != null },
        { Resource = var.key_arns },
      )],
      local.tables,
      # DynamoDB asks KMS in the name of whoever uses a table that a key of the account encrypts.
      [for arn in var.table_kms_key_arn[*] : {
        Sid       = "BetraceKmsTableEncryption"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
        Resource  = arn
        Condition = { StringEquals = { "kms:ViaService" = "dynamodb.${var.region}.amazonaws.com" } }
      }],
    )
  }

  trust_policy = {
    Version = "2012-10-17"
    Statement = concat(
      [for irsa in var.irsa[*] : {
        Sid       = "ServiceAccount"
        Effect    = "Allow"
        Principal = { Federated = irsa.oidc_provider_arn }
        Action    = "sts:AssumeRoleWithWebIdentity"
        Condition = {
          StringEquals = {
            "${split(":oidc-provider/", irsa.oidc_provider_arn)[1]}:aud" = "sts.amazonaws.com"
            "${split(":oidc-provider/", irsa.oidc_provider_arn)[1]}:sub" = "system:serviceaccount:${irsa.namespace}:${irsa.service_account}"
          }
        }
      }],
      [for pod in var.pod_identity[*] : {
        Sid       = "PodIdentity"
        Effect    = "Allow"
        Principal = { Service = "pods.eks.amazonaws.com" }
        Action    = ["sts:AssumeRole", "sts:TagSession"]
        Condition = {
          StringEquals = {
            "aws:RequestTag/eks-cluster-arn"            = "arn:${var.partition}:eks:${var.region}:${var.account_id}:cluster/${pod.cluster_name}"
            "aws:RequestTag/kubernetes-namespace"       = pod.namespace
            "aws:RequestTag/kubernetes-service-account" = pod.service_account
          }
        }
      }],
    )
  }
}
