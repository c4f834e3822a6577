# Plans only: nothing is started.

variables {
  fleet    = { name = "test", domain = "relay.example.net", ports = { https = 10443, http = 10080, stun = 13478, internal = 17443 } }
  code     = "fra"
  region   = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 2, voters = 1 }
  settings = { state_dir = "/nowhere" }
  cli      = { path = "causeway" }
  nodes = {
    "fra-1" = { region = "fra", ordinal = 1, derp_region_id = 901, fqdn = "fra-1.relay.example.net", voter = true, birth = { generation = 1 } }
    "fra-2" = { region = "fra", ordinal = 2, derp_region_id = 901, fqdn = "fra-2.relay.example.net", voter = false, birth = { generation = 1 } }
  }
}

run "machines_follow_the_contract" {
  command = plan

  assert {
    condition     = jsonencode({ for name, machine in output.machines : name => machine.internal }) == jsonencode({ "fra-1" = "127.90.1.11:17443", "fra-2" = "127.90.1.12:17443" })
    error_message = "wrong addresses"
  }
  assert {
    condition     = output.machines["fra-2"].public_ipv4 == "127.90.1.12" && output.machines["fra-2"].fqdn == "fra-2.relay.example.net" && !output.machines["fra-2"].voter
    error_message = "wrong machine"
  }
}

run "another_network_moves_the_addresses" {
  command = plan

  variables {
    settings = { state_dir = "/nowhere", network = "127.91.0.0/16" }
  }

  assert {
    condition     = output.machines["fra-1"].public_ipv4 == "127.91.1.11"
    error_message = "wrong address: ${output.machines["fra-1"].public_ipv4}"
  }
}

run "a_relative_state_dir_is_refused" {
  command = plan

  variables {
    settings = { state_dir = "fleet" }
  }

  expect_failures = [var.settings]
}

run "a_network_outside_the_loopback_is_refused" {
  command = plan

  variables {
    settings = { state_dir = "/nowhere", network = "10.90.0.0/16" }
  }

  expect_failures = [var.settings]
}

run "a_network_of_another_size_is_refused" {
  command = plan

  variables {
    settings = { state_dir = "/nowhere", network = "127.90.0.0/24" }
  }

  expect_failures = [var.settings]
}

run "a_setting_without_a_value_is_refused" {
  command = plan

  variables {
    settings = { state_dir = "/nowhere", set = ["log.filter"] }
  }

  expect_failures = [var.settings]
}

run "another_target_is_refused" {
  command = plan

  variables {
    region = { derp_region_id = 901, title = "Frankfurt", target = "hetzner", nodes = 2, voters = 1 }
  }

  expect_failures = [var.region]
}

run "a_region_number_that_gives_no_address_is_refused" {
  command = plan

  variables {
    region = { derp_region_id = 4, title = "Frankfurt", target = "local", nodes = 2, voters = 1 }
  }

  expect_failures = [var.region]
}
