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

variable "regions" {
  description = "The regions by code, as given to `topology`."
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
}

variable "machines" {
  description = "The machines of all regions by node name, merged from the outputs of the region modules."
  type = map(object({
    region         = string
    ordinal        = number
    derp_region_id = number
    fqdn           = string
    voter          = bool
    id             = string
    public_ipv4    = optional(string)
    public_ipv6    = optional(string)
    internal       = string
  }))

  validation {
    condition     = alltrue([for machine in values(var.machines) : contains(keys(var.regions), machine.region)])
    error_message = "machines: every machine belongs to one of the regions."
  }

  validation {
    condition     = alltrue([for machine in values(var.machines) : machine.public_ipv4 != null || machine.public_ipv6 != null])
    error_message = "machines: every machine has a public_ipv4 or a public_ipv6, or no client could reach it."
  }
}
