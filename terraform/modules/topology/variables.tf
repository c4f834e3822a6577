variable "fleet" {
  description = "The fleet: its name, the domain its nodes are named under, and the ports every node listens on."
  type = object({
    name   = string
    domain = string
    ports = optional(object({
      https    = optional(number, 443)
      http     = optional(number, 80)
      stun     = optional(number, 3478)
      internal = optional(number, 7443)
    }), {})
  })

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}$", var.fleet.name))
    error_message = "fleet.name: use 1 to 31 lower-case letters, digits and hyphens, first a letter."
  }

  validation {
    condition     = length(var.fleet.domain) <= 200 && can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$", var.fleet.domain))
    error_message = "fleet.domain: give a DNS name of at most 200 characters with at least two labels, such as relay.example.net."
  }

  validation {
    condition     = alltrue([for port in values(var.fleet.ports) : port == floor(port) && port >= 1 && port <= 65535])
    error_message = "fleet.ports: every port is a whole number from 1 to 65535."
  }

  validation {
    condition     = length(distinct([var.fleet.ports.https, var.fleet.ports.http, var.fleet.ports.internal])) == 3
    error_message = "fleet.ports: https, http and internal are all TCP on one address and must differ."
  }
}

variable "regions" {
  description = "The regions by code. A code and a derp_region_id never change; ordinals of nodes are 1..nodes, and the first `voters` of them vote."
  type = map(object({
    derp_region_id = number
    title          = string
    latitude       = optional(number)
    longitude      = optional(number)
    target         = string
    nodes          = number
    voters         = optional(number, 0)
    births = optional(map(object({
      generation = optional(number, 1)
    })), {})
  }))

  validation {
    condition     = length(var.regions) > 0
    error_message = "regions: a fleet has at least one."
  }

  validation {
    condition     = alltrue([for code in keys(var.regions) : can(regex("^[a-z]{2,8}[0-9]?$", code))])
    error_message = "regions: a code is 2 to 8 lower-case letters and at most one digit, such as fra or use1."
  }

  validation {
    condition     = length(distinct([for region in var.regions : region.derp_region_id])) == length(var.regions)
    error_message = "regions: every derp_region_id may be used once."
  }

  validation {
    condition = alltrue([for region in var.regions :
      region.derp_region_id == floor(region.derp_region_id) &&
      region.derp_region_id <= 999 &&
      region.derp_region_id >= (var.allow_low_region_ids ? 1 : 900)
    ])
    error_message = "regions: a derp_region_id is from 900 to 999, the range reserved for private relays; lower ones hide public regions and need allow_low_region_ids."
  }

  validation {
    condition     = alltrue([for region in var.regions : region.nodes == floor(region.nodes) && region.nodes >= 1 && region.nodes <= 64])
    error_message = "regions: nodes is a whole number from 1 to 64."
  }

  validation {
    condition     = alltrue([for region in var.regions : region.voters == floor(region.voters) && region.voters >= 0 && region.voters <= region.nodes])
    error_message = "regions: voters is a whole number from 0 to the nodes of the region."
  }

  validation {
    condition     = contains([1, 3, 5], sum(concat([0], [for region in var.regions : region.voters])))
    error_message = "regions: the voters of all regions together are 1, 3 or 5."
  }

  validation {
    condition = alltrue([for region in var.regions :
      (region.latitude == null) == (region.longitude == null) &&
      try(abs(region.latitude) <= 90 && abs(region.longitude) <= 180, region.latitude == null)
    ])
    error_message = "regions: give latitude (-90 to 90) and longitude (-180 to 180) both or neither."
  }

  validation {
    condition = alltrue(flatten([for code, region in var.regions : [for name in keys(region.births) :
      contains([for ordinal in range(1, region.nodes + 1) : "${code}-${ordinal}"], name)
    ]]))
    error_message = "regions: births names nodes of its region, as CODE-ORDINAL, such as fra-1."
  }

  validation {
    condition = alltrue(flatten([for region in var.regions : [for birth in values(region.births) :
      birth.generation == floor(birth.generation) && birth.generation >= 1
    ]]))
    error_message = "regions: a generation is a whole number from 1; raise it by one to replace a machine."
  }
}

variable "allow_low_region_ids" {
  description = "Allows region numbers below 900, which hide the public region of that number from clients that use both."
  type        = bool
  default     = false
}
