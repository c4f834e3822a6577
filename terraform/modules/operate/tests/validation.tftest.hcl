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
