# The master key, and its replicas in other Regions.
#
# None of them may be destroyed: without the key nothing that was encrypted can ever be opened. `terraform destroy`
# fails, on purpose.

resource "aws_kms_key" "master" {
  description              = "betrace-kms master key"
  key_usage                = "ENCRYPT_DECRYPT"
  customer_master_key_spec = "SYMMETRIC_DEFAULT"
  enable_key_rotation      = true # the ARN stays, and so does the old material for what it wrapped
  deletion_window_in_days  = var.deletion_window_in_days
  multi_region             = var.multi_region
  policy                   = module.policies.key_policy
  tags                     = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "master" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.master.key_id
}

# A replica has the key's material, and a policy, tags and a state of its own: see docs/multi-region.md.
resource "aws_kms_replica_key" "master" {
  for_each = toset(var.replica_regions)

  region                  = each.value
  description             = "betrace-kms master key"
  primary_key_arn         = aws_kms_key.master.arn
  deletion_window_in_days = var.deletion_window_in_days
  policy                  = module.policies.key_policy
  tags                    = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "replica" {
  for_each = aws_kms_replica_key.master

  region        = each.key
  name          = "alias/${var.name}"
  target_key_id = each.value.key_id
}
