# Every validation refuses what it is there for.

variables {
  fleet   = { name = "test", domain = "relay.example.net" }
  regions = { fra = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 1, voters = 1 } }
}

run "the_base_of_these_runs_is_accepted" {
  command = plan
}

run "low_region_ids_are_allowed_with_the_flag" {
  command = plan

  variables {
    regions              = { fra = { derp_region_id = 4, title = "Frankfurt", target = "local", nodes = 1, voters = 1 } }
    allow_low_region_ids = true
  }
}

run "a_fleet_name_starts_with_a_letter" {
  command = plan

  variables {
    fleet = { name = "1st", domain = "relay.example.net" }
  }

  expect_failures = [var.fleet]
}

run "a_domain_has_two_labels" {
  command = plan

  variables {
    fleet = { name = "test", domain = "localhost" }
  }

  expect_failures = [var.fleet]
}

run "a_domain_is_no_url" {
  command = plan

  variables {
    fleet = { name = "test", domain = "https://relay.example.net" }
  }

  expect_failures = [var.fleet]
}

run "a_port_is_at_most_65535" {
  command = plan

  variables {
    fleet = { name = "test", domain = "relay.example.net", ports = { stun = 65536 } }
  }

  expect_failures = [var.fleet]
}

run "tcp_ports_differ" {
  command = plan

  variables {
    fleet = { name = "test", domain = "relay.example.net", ports = { https = 80 } }
  }

  expect_failures = [var.fleet]
}

run "a_fleet_has_a_region" {
  command = plan

  variables {
    regions = {}
  }

  expect_failures = [var.regions]
}

run "a_code_is_lower_case" {
  command = plan

  variables {
    regions = { FRA = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1 } }
  }

  expect_failures = [var.regions]
}

run "a_code_has_two_letters" {
  command = plan

  variables {
    regions = { f = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1 } }
  }

  expect_failures = [var.regions]
}

run "region_ids_are_unique" {
  command = plan

  variables {
    regions = {
      fra = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1 }
      syd = { derp_region_id = 901, title = "S", target = "local", nodes = 1 }
    }
  }

  expect_failures = [var.regions]
}

run "low_region_ids_need_a_flag" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 899, title = "F", target = "local", nodes = 1, voters = 1 } }
  }

  expect_failures = [var.regions]
}

run "region_ids_end_at_999" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 1000, title = "F", target = "local", nodes = 1, voters = 1 } }
  }

  expect_failures = [var.regions]
}

run "a_region_has_a_node" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 0, voters = 0 }, syd = { derp_region_id = 902, title = "S", target = "local", nodes = 1, voters = 1 } }
  }

  expect_failures = [var.regions]
}

run "a_region_has_at_most_64_nodes" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 65, voters = 1 } }
  }

  expect_failures = [var.regions]
}

run "voters_are_nodes_of_their_region" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 2, voters = 3 } }
  }

  expect_failures = [var.regions]
}

run "voters_are_odd" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 2, voters = 2 } }
  }

  expect_failures = [var.regions]
}

run "voters_are_at_most_five" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 7, voters = 7 } }
  }

  expect_failures = [var.regions]
}

run "somebody_votes" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 1 } }
  }

  expect_failures = [var.regions]
}

run "a_latitude_needs_a_longitude" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1, latitude = 50 } }
  }

  expect_failures = [var.regions]
}

run "a_latitude_ends_at_the_pole" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1, latitude = 91, longitude = 8 } }
  }

  expect_failures = [var.regions]
}

run "births_name_existing_nodes" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1, births = { "fra-2" = {} } } }
  }

  expect_failures = [var.regions]
}

run "a_generation_starts_at_one" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "F", target = "local", nodes = 1, voters = 1, births = { "fra-1" = { generation = 0 } } } }
  }

  expect_failures = [var.regions]
}
