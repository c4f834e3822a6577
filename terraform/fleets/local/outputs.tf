locals {
  status = try(jsondecode(file(module.operate.status_file)), {})
}

output "derpmap_url" {
  description = "Where the fleet serves its DERP map."
  value       = try(local.status.derpmap_url, null)
}

output "ca_file" {
  description = "CA of the nodes' TLS certificates, PEM: clients trust it."
  value       = "${local.state_dir}/ca.pem"
}

output "operator_sockets" {
  description = "The operator socket of every node: what `causeway --socket` takes."
  value       = { for name in keys(module.topology.nodes) : name => "${local.state_dir}/${name}/operator.sock" }
}

output "status_file" {
  description = "The fleet's status as JSON, as of the last apply."
  value       = module.operate.status_file
}

output "derp_map_json" {
  description = "The DERP map the fleet should serve, computed from its machines; null with `derp_map`, whose effect only the fleet knows."
  value       = var.derp_map == null ? module.plan.derp_map_json : null
}
