# What AWS measures and the daemon cannot. Of its own calls, the daemon's metrics say more: see docs/monitoring.md.

locals {
  watched_tables = var.notifications == null ? toset([]) : toset([var.table_name, var.branch_keys_table_name])

  # DynamoDB counts its errors for each operation.
  table_operations = ["GetItem", "PutItem", "Query", "Scan", "TransactGetItems", "TransactWriteItems", "UpdateItem"]
}

# The quota is one for the account and Region, so others can use it up. Beyond it KMS throttles.
resource "aws_cloudwatch_metric_alarm" "kms_quota" {
  count = var.notifications == null ? 0 : 1

  alarm_name          = "${var.name}-kms-quota"
  alarm_description   = "Requests to KMS use more than 80 % of the quota of the account: see docs/troubleshooting.md#kms_throttled"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 80
  evaluation_periods  = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = [var.notifications.topic_arn]
  ok_actions          = [var.notifications.topic_arn]
  tags                = var.tags

  metric_query {
    id          = "usage"
    expression  = "calls / SERVICE_QUOTA(calls) * 100"
    label       = "percent of the quota"
    return_data = true
  }

  metric_query {
    id          = "calls"
    return_data = false

    metric {
      namespace   = "AWS/Usage"
      metric_name = "CallCount"
      period      = 60
      stat        = "Sum"
      dimensions = {
        Class    = "None"
        Resource = "CryptographicOperationsSymmetric"
        Service  = "KMS"
        Type     = "API"
      }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "table_throttling" {
  for_each = local.watched_tables

  alarm_name          = "${var.name}-throttling-${each.key}"
  alarm_description   = "DynamoDB throttles ${each.key}: see docs/troubleshooting.md#key_store_unavailable"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [var.notifications.topic_arn]
  ok_actions          = [var.notifications.topic_arn]
  tags                = var.tags

  metric_query {
    id          = "throttled"
    expression  = "SUM(METRICS())"
    label       = "throttled reads and writes"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = { reads = "ReadThrottleEvents", writes = "WriteThrottleEvents" }
    content {
      id          = metric_query.key
      return_data = false

      metric {
        namespace   = "AWS/DynamoDB"
        metric_name = metric_query.value
        period      = 300
        stat        = "Sum"
        dimensions  = { TableName = each.key }
      }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "table_errors" {
  for_each = local.watched_tables

  alarm_name          = "${var.name}-errors-${each.key}"
  alarm_description   = "DynamoDB has errors of its own with ${each.key}: see docs/troubleshooting.md#key_store_unavailable"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = 2
  treat_missing_data  = "notBreaching"
  alarm_actions       = [var.notifications.topic_arn]
  ok_actions          = [var.notifications.topic_arn]
  tags                = var.tags

  metric_query {
    id          = "errors"
    expression  = "SUM(METRICS())"
    label       = "errors of DynamoDB"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = local.table_operations
    content {
      id          = lower(metric_query.value)
      return_data = false

      metric {
        namespace   = "AWS/DynamoDB"
        metric_name = "SystemErrors"
        period      = 300
        stat        = "Sum"
        dimensions  = { TableName = each.key, Operation = metric_query.value }
      }
    }
  }
}
