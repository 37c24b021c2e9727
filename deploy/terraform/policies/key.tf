# Who administers the master key, and how the daemon uses it.

locals {
  # Every key that the daemon wraps is bound to an encryption context. A call without it is none of the daemon's, so
  # both policies deny it. Data keys and signing keys have the first form, rows of the branch key store the second.
  # Names of context keys are compared with case in EncryptionContextKeys only.
  contexts = {
    BetraceKmsTenantKeys = {
      "ForAnyValue:StringEquals" = { "kms:EncryptionContextKeys" = ["tenantId"] }
      StringEquals               = { "kms:EncryptionContext:keyType" = ["encryption", "sealing", "signing"] }
    }
    BetraceKmsBranchKeyRows = {
      "ForAnyValue:StringEquals" = { "kms:EncryptionContextKeys" = ["branch-key-id"] }
      StringEquals               = { "kms:EncryptionContext:tablename" = [var.logical_name] }
    }
  }

  uses = concat(
    # DescribeKey has no encryption context.
    [{
      Sid       = "BetraceKmsMasterKey"
      Effect    = "Allow"
      Action    = ["kms:DescribeKey"]
      Condition = null
    }],
    [for sid in ["BetraceKmsTenantKeys", "BetraceKmsBranchKeyRows"] : {
      Sid       = sid
      Effect    = "Allow"
      Action    = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"]
      Condition = local.contexts[sid]
    }],
  )

  # The account's statement leaves it to IAM policies who administers the key, so the key cannot be orphaned. It does
  # not let IAM policies allow its use, as the default key policy does: no Encrypt, Decrypt, ReEncrypt, GenerateDataKey,
  # and no CreateGrant, which would pass them on. ScheduleKeyDeletion is nobody's: whoever has to delete the key
  # changes its policy first.
  account = "arn:${var.partition}:iam::${var.account_id}:root"
  administration = {
    Sid       = "Administration"
    Effect    = "Allow"
    Principal = { AWS = length(var.key_administrators) > 0 ? var.key_administrators : [local.account] }
    Action = [
      "kms:CancelKeyDeletion",
      "kms:CreateAlias",
      "kms:DeleteAlias",
      "kms:DescribeKey",
      "kms:DisableKey",
      "kms:EnableKey",
      "kms:EnableKeyRotation",
      "kms:GetKeyPolicy",
      "kms:GetKeyRotationStatus",
      "kms:ListGrants",
      "kms:ListKeyPolicies",
      "kms:ListKeyRotations",
      "kms:ListResourceTags",
      "kms:PutKeyPolicy",
      "kms:ReplicateKey",
      "kms:RevokeGrant",
      "kms:RotateKeyOnDemand",
      "kms:TagResource",
      "kms:UntagResource",
      "kms:UpdateAlias",
      "kms:UpdateKeyDescription",
      "kms:UpdatePrimaryRegion",
    ]
    Resource = "*"
  }

  # KMS keeps the replicas of a multi-Region key alike by a service-linked role, whose IAM policy allows this and no more.
  synchronization = {
    Sid       = "Synchronization"
    Effect    = "Allow"
    Principal = { AWS = [local.account] }
    Action    = ["kms:SynchronizeMultiRegionKey"]
    Resource  = "*"
  }

  key_policy = {
    Version = "2012-10-17"
    Statement = concat(
      [local.administration, local.synchronization],
      [for use in local.uses : merge(
        { for name, value in use : name => value if value != null },
        { Principal = { AWS = [var.role_arn] }, Resource = "*" }, # in a key policy * is the key itself
      )],
    )
  }
}
