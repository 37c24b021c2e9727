# The role of the daemon: of a Kubernetes service account, or one that exists.

locals {
  makes_role = var.irsa != null || var.pod_identity != null
  role_arn   = local.makes_role ? one(aws_iam_role.daemon[*].arn) : var.role_arn
}

resource "aws_iam_role" "daemon" {
  count = local.makes_role ? 1 : 0

  name               = var.name
  description        = "The betrace-kms daemon"
  assume_role_policy = module.policies.trust_policy
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "daemon" {
  count = local.makes_role ? 1 : 0

  role       = aws_iam_role.daemon[0].name
  policy_arn = aws_iam_policy.daemon.arn
}

# IRSA needs nothing in the cluster but an annotation of the service account.
resource "aws_eks_pod_identity_association" "daemon" {
  count = var.pod_identity != null ? 1 : 0

  cluster_name    = var.pod_identity.cluster_name
  namespace       = var.pod_identity.namespace
  service_account = var.pod_identity.service_account
  role_arn        = aws_iam_role.daemon[0].arn
  tags            = var.tags
}
