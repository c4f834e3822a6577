# Makes a fleet of machines: forms it once, then waits until it is healthy. When and in which order things happen inside is the
# fleet's business; what must hold is in the exit codes of the commands.

locals {
  status_file = "${var.state_dir}/status.json"

  # What is left out has the fleet's default, which only the fleet knows; so it must not be there as null.
  derp_map = var.derp_map == null ? null : jsonencode({
    for field, value in merge(var.derp_map, {
      single_region = var.derp_map.single_region == null ? null : { for field, value in var.derp_map.single_region : field => value if value != null }
      regions = {
        for id, region in var.derp_map.regions : id => {
          for field, value in merge(region, {
            balancer = region.balancer == null ? null : { for field, value in region.balancer : field => value if value != null }
          }) : field => value if value != null
        }
      }
    }) : field => value if value != null
  })
}

# Repeating it on a formed fleet changes nothing, so it runs whenever a machine is new.
resource "terraform_data" "initialise" {
  triggers_replace = [var.fleet.name, var.state_dir, var.plan.voters, { for name, machine in var.machines : name => machine.id }]

  provisioner "local-exec" {
    interpreter = [var.cli.path, "local", "init", "--state-dir", var.state_dir, "--wait", var.wait, "--voters"]
    command     = join(",", var.plan.voters)
  }
}

# The settings are replaced as a whole. Taking the variable away leaves them as they are.
resource "terraform_data" "derp_map" {
  count            = var.derp_map == null ? 0 : 1
  triggers_replace = [terraform_data.initialise.id, local.derp_map]

  provisioner "local-exec" {
    interpreter = [var.cli.path, "local", "derpmap", "--state-dir", var.state_dir, "--wait", var.wait, "--settings"]
    command     = local.derp_map
  }
}

resource "terraform_data" "status" {
  input            = local.status_file
  triggers_replace = [terraform_data.initialise.id, terraform_data.derp_map[*].id, var.plan.digest]

  provisioner "local-exec" {
    interpreter = [var.cli.path, "local", "status", "--state-dir", var.state_dir, "--json", "--wait", "healthy=${var.wait}", "--file"]
    command     = local.status_file
  }

  # The file was written for Terraform, so it goes with it.
  provisioner "local-exec" {
    when        = destroy
    interpreter = ["rm", "-f"]
    command     = self.output
  }
}
