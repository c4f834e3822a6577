# Derives the nodes of a fleet from its regions. Pure: no resource, no provider.

locals {
  nodes_by_region = {
    for code, region in var.regions : code => {
      for ordinal in range(1, region.nodes + 1) : "${code}-${ordinal}" => {
        region         = code
        ordinal        = ordinal
        derp_region_id = region.derp_region_id
        fqdn           = "${code}-${ordinal}.${var.fleet.domain}"
        voter          = ordinal <= region.voters
        birth          = { generation = try(region.births["${code}-${ordinal}"].generation, 1) }
      }
    }
  }

  nodes  = merge(values(local.nodes_by_region)...)
  voters = sum([for region in var.regions : region.voters])

  majority_regions = [for code, region in var.regions : code if local.voters > 1 && 2 * region.voters > local.voters]
  warnings         = [for code in local.majority_regions : "region ${code} holds a majority of the voters: without it the fleet has no leader"]
}

check "voters_are_spread" {
  assert {
    condition     = length(local.warnings) == 0
    error_message = join("; ", local.warnings)
  }
}
