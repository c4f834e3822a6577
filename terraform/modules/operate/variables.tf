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
