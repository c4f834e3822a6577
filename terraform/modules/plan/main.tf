# What the fleet as a whole looks like, computed from its machines. Pure: no resource, no provider.

locals {
  default_https = 443
  default_stun  = 3478

  # The order within a region is the order of ordinals, not of names: node 10 comes after node 9.
  ordered = {
    for code in keys(var.regions) : code => [
      for key in sort([for name, machine in var.machines : format("%03d/%s", machine.ordinal, name) if machine.region == code]) :
      merge(var.machines[split("/", key)[1]], { name = split("/", key)[1] })
    ]
  }

  derp_map = {
    Regions = {
      for code, region in var.regions : tostring(region.derp_region_id) => {
        for field, value in {
          RegionID   = region.derp_region_id
          RegionCode = code
          RegionName = region.title
          Latitude   = region.latitude
          Longitude  = region.longitude
          Nodes = [
            for machine in local.ordered[code] : {
              for field, value in {
                Name      = machine.name
                RegionID  = region.derp_region_id
                HostName  = machine.fqdn
                IPv4      = machine.public_ipv4
                IPv6      = machine.public_ipv6
                DERPPort  = var.fleet.ports.https == local.default_https ? null : var.fleet.ports.https
                STUNPort  = var.fleet.ports.stun == local.default_stun ? null : var.fleet.ports.stun
                CanPort80 = var.fleet.ports.http == 80 ? true : null
              } : field => value if value != null
            }
          ]
        } : field => value if value != null
      } if length(local.ordered[code]) > 0
    }
  }

  voters = sort([for name, machine in var.machines : name if machine.voter])
}
