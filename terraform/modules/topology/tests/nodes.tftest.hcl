variables {
  fleet = { name = "test", domain = "relay.example.net" }
  regions = {
    fra  = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 2, voters = 1, births = { "fra-2" = { generation = 3 } } }
    use1 = { derp_region_id = 902, title = "Virginia", target = "local", nodes = 3, voters = 1 }
    syd  = { derp_region_id = 903, title = "Sydney", target = "local", nodes = 1, voters = 1 }
  }
}

run "derives_every_node" {
  command = plan

  assert {
    condition     = jsonencode(sort(keys(output.nodes))) == jsonencode(["fra-1", "fra-2", "syd-1", "use1-1", "use1-2", "use1-3"])
    error_message = "wrong names: ${jsonencode(keys(output.nodes))}"
  }
  assert {
    condition = jsonencode(output.nodes["fra-2"]) == jsonencode({
      region = "fra", ordinal = 2, derp_region_id = 901, fqdn = "fra-2.relay.example.net", voter = false, birth = { generation = 3 }
    })
    error_message = "wrong node: ${jsonencode(output.nodes["fra-2"])}"
  }
  assert {
    condition     = jsonencode([for name, node in output.nodes : name if node.voter]) == jsonencode(["fra-1", "syd-1", "use1-1"])
    error_message = "the first node of each region votes"
  }
  assert {
    condition     = jsonencode(keys(output.nodes_by_region["use1"])) == jsonencode(["use1-1", "use1-2", "use1-3"])
    error_message = "nodes_by_region holds the nodes of that region"
  }
  assert {
    condition     = length(output.warnings) == 0
    error_message = "spread voters need no warning"
  }
}

run "a_region_more_changes_no_other_node" {
  command = plan

  variables {
    regions = {
      fra  = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 2, voters = 1, births = { "fra-2" = { generation = 3 } } }
      use1 = { derp_region_id = 902, title = "Virginia", target = "local", nodes = 3, voters = 1 }
      syd  = { derp_region_id = 903, title = "Sydney", target = "local", nodes = 1, voters = 1 }
      ams  = { derp_region_id = 904, title = "Amsterdam", target = "local", nodes = 1 }
    }
  }

  assert {
    condition     = jsonencode({ for name, node in output.nodes : name => node if node.region != "ams" }) == jsonencode(run.derives_every_node.nodes)
    error_message = "the nodes of the other regions must stay as they are"
  }
  assert {
    condition     = output.nodes["ams-1"].voter == false
    error_message = "a region has no voters unless it says so"
  }
}

run "warns_of_a_majority_in_one_region" {
  command = plan

  variables {
    regions = {
      fra = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 2, voters = 2 }
      syd = { derp_region_id = 903, title = "Sydney", target = "local", nodes = 1, voters = 1 }
    }
  }

  expect_failures = [check.voters_are_spread]
}

run "one_region_with_one_voter_is_no_majority_worth_a_warning" {
  command = plan

  variables {
    regions = { fra = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 1, voters = 1 } }
  }

  assert {
    condition     = length(output.warnings) == 0
    error_message = "a fleet of one voter cannot spread it"
  }
}
