# Makes a fleet of machines: forms it once, then waits until it is healthy. When and in which order things happen inside is the
# fleet's business; what must hold is in the exit codes of the commands.

locals {
  status_file = "${var.state_dir}/status.json"
}

# Repeating it on a formed fleet changes nothing, so it runs whenever a machine is new.
resource "terraform_data" "initialise" {
  triggers_replace = [var.fleet.name, var.state_dir, var.plan.voters, { for name, machine in var.machines : name => machine.id }]

  provisioner "local-exec" {
    interpreter = [var.cli.path, "local", "init", "--state-dir", var.state_dir, "--wait", var.wait, "--voters"]
    command     = join(",", var.plan.voters)
  }
}

resource "terraform_data" "status" {
  input            = local.status_file
  triggers_replace = [terraform_data.initialise.id, var.plan.digest]

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
