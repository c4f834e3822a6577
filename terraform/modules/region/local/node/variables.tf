variable "name" {
  description = "The node's name, CODE-ORDINAL."
  type        = string
}

variable "node" {
  description = "The node, one value of `topology.nodes`."
  type = object({
    region         = string
    ordinal        = number
    derp_region_id = number
    fqdn           = string
    voter          = bool
    birth          = object({ generation = number })
  })
}

variable "address" {
  description = "The loopback address it binds and is reached at."
  type        = string
}

variable "ports" {
  description = "The ports it listens on."
  type        = object({ https = number, http = number, stun = number, internal = number })
}

variable "region" {
  description = "Its region: code, title and coordinates in degrees."
  type        = object({ code = string, title = string, latitude = optional(number), longitude = optional(number) })
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
}

variable "cli" {
  description = "The operator's command line that starts and stops the node."
  type        = object({ path = string })
}
