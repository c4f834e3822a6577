output "machine" {
  description = "The node as a machine of the fleet: the part of the contract every target gives."
  value = {
    region         = var.node.region
    ordinal        = var.node.ordinal
    derp_region_id = var.node.derp_region_id
    fqdn           = var.node.fqdn
    voter          = var.node.voter
    id             = terraform_data.process.id
    public_ipv4    = var.address
    public_ipv6    = null
    internal       = "${var.address}:${var.ports.internal}"
  }
}

output "config" {
  description = "What the node is told, as JSON."
  value       = jsonencode(local.config)
}
