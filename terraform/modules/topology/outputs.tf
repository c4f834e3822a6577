output "nodes" {
  description = "Every node by its name CODE-ORDINAL."
  value       = local.nodes
}

output "nodes_by_region" {
  description = "The same nodes, by region code."
  value       = local.nodes_by_region
}

output "warnings" {
  description = "Sentences about what is allowed and unwise."
  value       = local.warnings
}
