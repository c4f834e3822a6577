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
