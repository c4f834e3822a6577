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
}

variable "code" {
  description = "The region's code."
  type        = string
}

variable "region" {
  description = "The region, one value of the map given to `topology`."
  type = object({
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
  })

  validation {
    condition     = var.region.target == "local"
    error_message = "region.target: this module makes local nodes only; use local."
  }

  validation {
    condition     = var.region.derp_region_id >= 900 && var.region.derp_region_id <= 999
    error_message = "region.derp_region_id: a local region takes its addresses from a number between 900 and 999."
  }
}

variable "nodes" {
  description = "The region's nodes by name, from `topology.nodes_by_region`."
  type = map(object({
    region         = string
    ordinal        = number
    derp_region_id = number
    fqdn           = string
    voter          = bool
    birth          = object({ generation = number })
  }))
}

variable "settings" {
  description = "Where local nodes live: state_dir holds a directory per node; network is the loopback /16 their addresses are taken from; metrics_port is the same on every address; leash is a file whose exclusive lock keeps the nodes alive; set holds further configuration fields, KEY=VALUE as TOML paths."
  type = object({
    state_dir    = string
    network      = optional(string, "127.90.0.0/16")
    metrics_port = optional(number, 19090)
    leash        = optional(string)
    set          = optional(list(string), [])
  })

  validation {
    condition     = startswith(var.settings.state_dir, "/")
    error_message = "settings.state_dir: give an absolute path; the nodes outlive the directory they are started from."
  }

  validation {
    condition     = try(cidrhost(var.settings.network, 0) == split("/", var.settings.network)[0] && endswith(var.settings.network, "/16"), false) && startswith(var.settings.network, "127.")
    error_message = "settings.network: give a /16 of the loopback, such as 127.90.0.0/16."
  }

  validation {
    condition     = alltrue([for set in var.settings.set : can(regex("^[^=]+=", set))])
    error_message = "settings.set: every entry is KEY=VALUE with a TOML path as KEY, such as limits.clients=100."
  }
}

variable "cli" {
  description = "The operator's command line that starts and stops the nodes: a path, or a name on the PATH."
  type        = object({ path = string })
}
