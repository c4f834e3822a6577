# One node: its directory, which lives as long as its generation, and its process, which is started anew when its
# configuration changes. Both depend on variables only, so a change of one node waits for no other.

locals {
  config = {
    name      = var.name
    host_name = var.node.fqdn
    bind      = var.address
    region = {
      for field, value in {
        id        = var.node.derp_region_id
        code      = var.region.code
        name      = var.region.title
        latitude  = var.region.latitude
        longitude = var.region.longitude
      } : field => value if value != null
    }
    ports = {
      https    = var.ports.https
      http     = var.ports.http
      stun     = var.ports.stun
      internal = var.ports.internal
      metrics  = var.settings.metrics_port
    }
    set = var.settings.set
  }

  leash = var.settings.leash == null ? [] : ["--leash", var.settings.leash]
}

# The node's identity and data. Made by the first start; a raised generation removes it, and the next start is a new node.
resource "terraform_data" "directory" {
  input            = { cli = var.cli.path, state_dir = var.settings.state_dir, name = var.name }
  triggers_replace = [var.settings.state_dir, var.name, var.node.birth.generation]

  provisioner "local-exec" {
    when        = destroy
    interpreter = [self.output.cli, "local", "stop", "--state-dir", self.output.state_dir, "--remove", "--node"]
    command     = self.output.name
  }
}

# The process, under a supervisor. Starting first ends what an earlier attempt left, because a tainted resource's destroy
# provisioner never runs.
resource "terraform_data" "process" {
  input            = { cli = var.cli.path, state_dir = var.settings.state_dir, name = var.name }
  triggers_replace = [var.settings.state_dir, var.node.birth.generation, local.config, local.leash]
  depends_on       = [terraform_data.directory]

  provisioner "local-exec" {
    interpreter = concat([var.cli.path, "local", "start", "--state-dir", var.settings.state_dir], local.leash, ["--config"])
    command     = jsonencode(local.config)
  }

  provisioner "local-exec" {
    when        = destroy
    interpreter = [self.output.cli, "local", "stop", "--state-dir", self.output.state_dir, "--node"]
    command     = self.output.name
  }
}
