# Nothing that AWS makes is known before the first apply. Terraform has to know all the same how many there are of each
# thing, or the first plan fails.

mock_provider "aws" {}

run "everything" {
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
