# A region of plain processes on this machine, one loopback address each. There is nothing shared to make: no network, no
# firewall. Every node is a call of ./node, so that each can be replaced on its own.

locals {
  # The third byte is the region's own number, so that adding or removing another region moves nobody.
  region_byte = var.region.derp_region_id - 900
}

module "node" {
  source   = "./node"
  for_each = var.nodes

  name     = each.key
  node     = each.value
  address  = cidrhost(var.settings.network, local.region_byte * 256 + 10 + each.value.ordinal)
  ports    = var.fleet.ports
  region   = { code = var.code, title = var.region.title, latitude = var.region.latitude, longitude = var.region.longitude }
  settings = var.settings
  cli      = var.cli
}
