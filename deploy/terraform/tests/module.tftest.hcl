# What the module makes of its variables. The provider is mocked, so nothing is made: `terraform init`, `terraform test`.

mock_provider "aws" {
  override_during = plan

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_region" {
    defaults = { region = "us-east-1" }
  }

  mock_data "aws_vpc_endpoint_service" {
    defaults = { service_name = "com.amazonaws.us-east-1.mocked" }
  }

  mock_resource "aws_kms_key" {
    defaults = {
      arn    = "arn:aws:kms:us-east-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"
      key_id = "mrk-1234abcd12ab34cd56ef1234567890ab"
    }
  }

  mock_resource "aws_kms_replica_key" {
    defaults = {
      arn    = "arn:aws:kms:us-west-2:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"
      key_id = "mrk-1234abcd12ab34cd56ef1234567890ab"
    }
  }

  mock_resource "aws_dynamodb_table" {
    defaults = { arn = "arn:aws:dynamodb:us-east-1:123456789012:table/mocked" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/betrace-kms" }
  }

  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/betrace-kms" }
  }

  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:betrace-kms" }
  }
}

run "minimal" {
  command = plan

  module {
    source = "./examples/minimal"
  }

  variables {
    role_arn = "arn:aws:iam::123456789012:role/task"
  }
}

run "irsa" {
  command = plan

  module {
    source = "./examples/irsa"
  }

  variables {
    oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
  }
}

run "pod_identity" {
  command = plan

  module {
    source = "./examples/pod-identity"
  }

  variables {
    cluster_name = "production"
  }
}

run "multi_region" {
  command = plan

  module {
    source = "./examples/multi-region"
  }

  override_resource {
    override_during = plan
    target          = module.betrace_kms.aws_kms_replica_key.master["eu-west-1"]
    values          = { arn = "arn:aws:kms:eu-west-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab" }
  }

  variables {
    role_arn = "arn:aws:iam::123456789012:role/task"
  }
}

run "all" {
  command = plan

  module {
    source = "./examples/all"
  }

  variables {
    oidc_provider_arn         = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
    cluster_name              = "production"
    vpc_id                    = "vpc-0abc"
    subnet_ids                = ["subnet-0abc", "subnet-0def"]
    route_table_ids           = ["rtb-0abc"]
    client_security_group_ids = ["sg-0abc"]
    key_administrators        = ["arn:aws:iam::123456789012:role/key-administrator"]
    table_kms_key_arn         = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    former_master_key_arn     = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
  }
}

run "no_role" {
  command         = plan
  expect_failures = [var.role_arn]
}

run "two_roles" {
  command         = plan
  expect_failures = [var.role_arn]

  variables {
    role_arn     = "arn:aws:iam::123456789012:role/task"
    pod_identity = { cluster_name = "production" }
  }
}

run "replicas_of_a_single_region_key" {
  command         = plan
  expect_failures = [var.replica_regions]

  variables {
    role_arn        = "arn:aws:iam::123456789012:role/task"
    multi_region    = false
    replica_regions = ["us-west-2"]
  }
}

run "short_deletion_window" {
  command         = plan
  expect_failures = [var.deletion_window_in_days]

  variables {
    role_arn                = "arn:aws:iam::123456789012:role/task"
    deletion_window_in_days = 6
  }
}
