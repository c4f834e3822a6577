# Plans only: nothing is started.

variables {
  name     = "fra-1"
  node     = { region = "fra", ordinal = 1, derp_region_id = 901, fqdn = "fra-1.relay.example.net", voter = true, birth = { generation = 1 } }
  address  = "127.90.1.11"
  ports    = { https = 10443, http = 10080, stun = 13478, internal = 17443 }
  region   = { code = "fra", title = "Frankfurt", latitude = 50.1, longitude = 8.7 }
  settings = { state_dir = "/nowhere", set = ["log.format=\"json\""] }
  cli      = { path = "causeway" }
}

run "a_node_is_told_who_it_is_and_nothing_of_its_peers" {
  command = plan

  assert {
    condition = output.config == jsonencode({
      name      = "fra-1"
      host_name = "fra-1.relay.example.net"
      bind      = "127.90.1.11"
      region    = { id = 901, code = "fra", name = "Frankfurt", latitude = 50.1, longitude = 8.7 }
      ports     = { https = 10443, http = 10080, stun = 13478, internal = 17443, metrics = 19090 }
      set       = ["log.format=\"json\""]
    })
    error_message = "wrong configuration: ${output.config}"
  }
}

run "coordinates_may_be_left_out" {
  command = plan

  variables {
    region = { code = "fra", title = "Frankfurt" }
  }

  assert {
    condition     = jsonencode(jsondecode(output.config).region) == jsonencode({ code = "fra", id = 901, name = "Frankfurt" })
    error_message = "wrong region: ${output.config}"
  }
}
