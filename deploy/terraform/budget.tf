# What KMS costs the whole account in a month: AWS counts by key only where keys have a cost allocation tag.

resource "aws_budgets_budget" "kms" {
  count = try(var.notifications.monthly_budget_usd, null) == null ? 0 : 1

  name         = "${var.name}-kms"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(var.notifications.monthly_budget_usd)
  limit_unit   = "USD"
  tags         = var.tags

  cost_filter {
    name   = "Service"
    values = ["AWS Key Management Service"]
  }

  dynamic "notification" {
    for_each = { ACTUAL = 80, FORECASTED = 100 }
    content {
      notification_type         = notification.key
      comparison_operator       = "GREATER_THAN"
      threshold                 = notification.value
      threshold_type            = "PERCENTAGE"
      subscriber_sns_topic_arns = [var.notifications.topic_arn]
    }
  }
}
