# Calls of anybody that a person should hear of. A trail has to record management events, those of KMS included. Only
# calls in this Region are seen: what is done to a replica is an event of the replica's Region.

locals {
  watched_calls = var.notifications == null ? {} : {
    key-changes = {
      description = "Somebody disabled or shared the master key, or scheduled its deletion"
      pattern     = module.policies.key_changes_pattern
      state       = "ENABLED"
    }
    # Decrypt, Encrypt and GenerateDataKey only read, for CloudTrail, and a rule gets such events in this state alone.
    denied-calls = {
      description = "KMS denied a call of the daemon, or somebody's call on the master key"
      pattern     = module.policies.denied_calls_pattern
      state       = "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"
    }
  }
}

resource "aws_cloudwatch_event_rule" "calls" {
  for_each = local.watched_calls

  name          = "${var.name}-${each.key}"
  description   = each.value.description
  event_pattern = each.value.pattern
  state         = each.value.state
  tags          = var.tags
}

resource "aws_cloudwatch_event_target" "calls" {
  for_each = local.watched_calls

  rule = aws_cloudwatch_event_rule.calls[each.key].name
  arn  = var.notifications.topic_arn
}
