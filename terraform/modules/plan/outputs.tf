output "derp_map_json" {
  description = "The DERP map the fleet serves once every machine is in it, as JSON."
  value       = jsonencode(local.derp_map)
}

output "voters" {
  description = "Names of the nodes that vote, sorted."
  value       = local.voters
}

output "digest" {
  description = "Changes whenever the shape of the fleet does: its map or its voters."
  value       = sha256(jsonencode([var.fleet.name, local.derp_map, local.voters]))
}
