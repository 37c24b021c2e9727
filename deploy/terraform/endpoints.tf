# Private ways to KMS, STS and DynamoDB, for subnets without a route to the internet.

locals {
  # Only IRSA asks STS: EKS Pod Identity, ECS and EC2 get credentials on the node.
  interface_endpoints = var.endpoints == null ? {} : merge(
    { kms = module.policies.kms_endpoint_policy },
    { for name in var.irsa == null ? [] : ["sts"] : name => module.policies.sts_endpoint_policy },
  )
  gateway_endpoints = var.endpoints == null ? {} : { dynamodb = module.policies.dynamodb_endpoint_policy }
}

# Their names differ between partitions.
data "aws_vpc_endpoint_service" "interface" {
  for_each = local.interface_endpoints

  service      = each.key
  service_type = "Interface"
}

data "aws_vpc_endpoint_service" "gateway" {
  for_each = local.gateway_endpoints

  service      = each.key
  service_type = "Gateway"
}

resource "aws_security_group" "endpoints" {
  count = var.endpoints == null ? 0 : 1

  name        = "${var.name}-endpoints"
  description = "Endpoints that betrace-kms asks"
  vpc_id      = var.endpoints.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "endpoints" {
  count = var.endpoints == null ? 0 : length(var.endpoints.client_security_group_ids)

  security_group_id            = aws_security_group.endpoints[0].id
  description                  = "The daemon's pods"
  referenced_security_group_id = var.endpoints.client_security_group_ids[count.index]
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
  tags                         = var.tags
}

resource "aws_vpc_endpoint" "interface" {
  for_each = local.interface_endpoints

  vpc_id              = var.endpoints.vpc_id
  vpc_endpoint_type   = "Interface"
  service_name        = data.aws_vpc_endpoint_service.interface[each.key].service_name
  subnet_ids          = var.endpoints.subnet_ids
  security_group_ids  = aws_security_group.endpoints[*].id
  private_dns_enabled = true
  policy              = each.value
  tags                = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_vpc_endpoint" "gateway" {
  for_each = local.gateway_endpoints

  vpc_id            = var.endpoints.vpc_id
  vpc_endpoint_type = "Gateway"
  service_name      = data.aws_vpc_endpoint_service.gateway[each.key].service_name
  route_table_ids   = var.endpoints.route_table_ids
  policy            = each.value
  tags              = merge(var.tags, { Name = "${var.name}-${each.key}" })
}
