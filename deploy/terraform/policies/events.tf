# Calls that CloudTrail records and EventBridge is to tell of.

locals {
  call = {
    source        = ["aws.kms"]
    "detail-type" = ["AWS API Call via CloudTrail"]
  }

  # What ends the use of the key, or opens it to others.
  key_changes_pattern = merge(local.call, {
    detail = {
      eventSource = ["kms.amazonaws.com"]
      eventName   = ["CreateGrant", "DisableKey", "DisableKeyRotation", "PutKeyPolicy", "ScheduleKeyDeletion", "UpdatePrimaryRegion"]
      resources   = { ARN = var.key_arns }
    }
  })

  # A denied call need not list the key among its resources; its message names it.
  denied_calls_pattern = merge(local.call, {
    detail = {
      eventSource = ["kms.amazonaws.com"]
      errorCode   = ["AccessDenied", "AccessDeniedException"]
      "$or" = [
        { userIdentity = { sessionContext = { sessionIssuer = { arn = [var.role_arn] } } } },
        { resources = { ARN = var.key_arns } },
        { errorMessage = [for arn in var.key_arns : { wildcard = "*${arn}*" }] },
      ]
    }
  })
}
