# Plans only: nothing is started.

variables {
  fleet     = { name = "test" }
  state_dir = "/nowhere"
  cli       = { path = "causeway" }
  plan      = { voters = ["fra-1"], digest = "d" }
  machines = {
    "fra-1" = { region = "fra", ordinal = 1, derp_region_id = 901, fqdn = "fra-1.relay.example.net", voter = true, id = "1", public_ipv4 = "127.90.1.11", internal = "127.90.1.11:17443" }
  }
}

run "the_status_lies_with_the_fleet" {
  command = plan

  assert {
    condition     = terraform_data.status.input == "/nowhere/status.json"
    error_message = "wrong file"
  }
}

run "settings_of_the_map_hold_only_what_is_given" {
  command = plan

  variables {
    derp_map = { mode = "cross-listed", regions = { "901" = { score = 0.8, balancer = { host_name = "b.example" } } } }
  }

  assert {
    condition = jsondecode(local.derp_map) == {
      mode    = "cross-listed"
      regions = { "901" = { score = 0.8, balancer = { host_name = "b.example" } } }
    }
    error_message = "wrong settings"
  }

  assert {
    condition     = length(terraform_data.derp_map) == 1
    error_message = "they are applied once"
  }
}

run "without_settings_the_map_is_left_alone" {
  command = plan

  assert {
    condition     = length(terraform_data.derp_map) == 0
    error_message = "nothing is to be applied"
  }
}

run "an_unknown_mode_is_refused" {
  command = plan

  variables {
    derp_map = { mode = "striped" }
  }

  expect_failures = [var.derp_map]
}

run "an_unknown_mode_of_a_region_is_refused" {
  command = plan

  variables {
    derp_map = { regions = { "901" = { mode = "striped" } } }
  }

  expect_failures = [var.derp_map]
}

run "a_voter_that_is_no_machine_is_refused" {
  command = plan

  variables {
    plan = { voters = ["syd-1"], digest = "d" }
  }

  expect_failures = [var.plan]
}

run "a_time_without_a_unit_is_refused" {
  command = plan

  variables {
    wait = "120"
  }

  expect_failures = [var.wait]
}
