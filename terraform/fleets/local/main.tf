# A whole fleet on this machine: plain processes on loopback addresses. Needs the built-in provider only.

locals {
  port_shift = 10000
  state_dir  = abspath(var.state_dir == null ? "${path.root}/.fleet" : var.state_dir)
  fleet      = merge(var.fleet, { ports = { for name, port in var.fleet.ports : name => port + local.port_shift } })
  # The nodes know regions by number.
  derp_map = var.derp_map == null ? null : merge(var.derp_map, {
    regions = { for code, region in var.derp_map.regions : tostring(var.regions[code].derp_region_id) => region }
  })
  settings = { state_dir = local.state_dir, network = var.network, leash = var.leash == null ? null : abspath(var.leash), set = var.set }
}

module "topology" {
  source = "../../modules/topology"

  fleet   = local.fleet
  regions = var.regions
}

module "region" {
  source   = "../../modules/region/local"
  for_each = var.regions

  fleet    = local.fleet
  code     = each.key
  region   = each.value
  nodes    = module.topology.nodes_by_region[each.key]
  settings = local.settings
  cli      = var.cli
}

module "plan" {
  source = "../../modules/plan"

  fleet    = local.fleet
  regions  = var.regions
  machines = merge([for region in module.region : region.machines]...)
}

module "operate" {
  source = "../../modules/operate"

  fleet     = local.fleet
  machines  = merge([for region in module.region : region.machines]...)
  derp_map  = local.derp_map
  plan      = { voters = module.plan.voters, digest = module.plan.digest }
  cli       = var.cli
  state_dir = local.state_dir
  wait      = var.wait
}
