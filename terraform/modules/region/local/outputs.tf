output "machines" {
  description = "The region's machines by node name."
  value       = { for name, node in module.node : name => node.machine }
}

output "rolls" {
  description = "Whether several nodes may be replaced in one apply without an outage: not before nodes leave in good order under a lease."
  value       = false
}
