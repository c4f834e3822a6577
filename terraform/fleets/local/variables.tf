variable "fleet" {
  description = "Name of the fleet, domain of its nodes, and ports; a local node listens on each port plus 10000, so that no privilege is needed."
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
  default = { name = "local", domain = "causeway.test" }
}

variable "regions" {
  description = "The regions by code: number in the DERP map (900 to 999), title, coordinates, how many nodes, how many of them vote."
  type = map(object({
    derp_region_id = number
    title          = string
    latitude       = optional(number)
    longitude      = optional(number)
    target         = optional(string, "local")
    nodes          = number
    voters         = optional(number, 0)
    births = optional(map(object({
      generation = optional(number, 1)
    })), {})
  }))
  default = {
    fra = { derp_region_id = 901, title = "Frankfurt", latitude = 50.1, longitude = 8.7, nodes = 2, voters = 1 }
    nyc = { derp_region_id = 902, title = "New York", latitude = 40.7, longitude = -74.0, nodes = 2, voters = 1 }
    sin = { derp_region_id = 903, title = "Singapore", latitude = 1.4, longitude = 103.8, nodes = 2, voters = 1 }
  }
}

variable "derp_map" {
  description = "How the fleet makes its DERP map: the fields of `docs/operations/derp-map.toml`, `regions` by code. null: as it is, at first with mode `plain`."
  type = object({
    mode                    = optional(string, "plain")
    cross_listed_per_region = optional(number)
    grace_seconds           = optional(number)
    merge_default_regions   = optional(bool)
    single_region = optional(object({
      id        = number
      code      = string
      name      = optional(string)
      latitude  = optional(number)
      longitude = optional(number)
    }))
    regions = optional(map(object({
      mode               = optional(string)
      score              = optional(number)
      avoid              = optional(bool)
      no_measure_no_home = optional(bool)
      balancer = optional(object({
        host_name          = string
        ipv4               = optional(string)
        ipv6               = optional(string)
        derp_port          = optional(number)
        stun_port          = optional(number)
        can_port80         = optional(bool)
        cert_name          = optional(string)
        insecure_for_tests = optional(bool)
      }))
    })), {})
  })
  default = null

  validation {
    condition     = alltrue([for code in keys(try(var.derp_map.regions, {})) : contains(keys(var.regions), code)])
    error_message = "derp_map.regions: every key is the code of one of the regions."
  }
}

variable "state_dir" {
  description = "Where the fleet lives on this machine; null: `.fleet` beside this file. Keep it short, it holds Unix sockets."
  type        = string
  default     = null
}

variable "network" {
  description = "The loopback /16 the nodes take their addresses from; two fleets on one machine need two."
  type        = string
  default     = "127.90.0.0/16"
}

variable "leash" {
  description = "A file somebody holds an exclusive lock on: when the lock is freed, the nodes end. null: they run until destroyed."
  type        = string
  default     = null
}

variable "set" {
  description = "Further configuration fields of every node, KEY=VALUE with a TOML path as KEY."
  type        = list(string)
  default     = []
}

variable "cli" {
  description = "The `causeway` program: a path, or a name on the PATH. `causewayd` lies beside it."
  type        = object({ path = string })
  default     = { path = "causeway" }
}

variable "wait" {
  description = "How long forming the fleet, and then its becoming healthy, may take each."
  type        = string
  default     = "120s"
}
