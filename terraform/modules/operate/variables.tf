variable "fleet" {
  description = "The fleet; only its name is used."
  type        = object({ name = string })
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
}

variable "plan" {
  description = "What the `plan` module computed: the voters and the digest of the fleet's shape."
  type        = object({ voters = list(string), digest = string })

  validation {
    condition     = alltrue([for voter in var.plan.voters : contains(keys(var.machines), voter)])
    error_message = "plan.voters: every voter is one of the machines."
  }
}

variable "derp_map" {
  description = "How the fleet makes its DERP map: the fields of `docs/operations/derp-map.toml`, `regions` by number. null: as it is."
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
    condition = var.derp_map == null ? true : alltrue([
      for mode in concat([var.derp_map.mode], [for region in values(var.derp_map.regions) : region.mode == null ? "plain" : region.mode]) :
      contains(["plain", "cross-listed", "balanced", "single-region"], mode)
    ])
    error_message = "derp_map: a mode is plain, cross-listed, balanced or single-region."
  }
}

variable "cli" {
  description = "The operator's command line: a path, or a name on the PATH."
  type        = object({ path = string })
}

variable "state_dir" {
  description = "Where the local nodes live; the status is written there too."
  type        = string
}

variable "wait" {
  description = "How long forming the fleet, and then its becoming healthy, may take each: a number and a unit, such as 120s."
  type        = string
  default     = "120s"

  validation {
    condition     = can(regex("^[1-9][0-9]{0,5}(ms|s|m|h)$", var.wait))
    error_message = "wait: give a number and a unit, such as 120s or 5m."
  }
}
