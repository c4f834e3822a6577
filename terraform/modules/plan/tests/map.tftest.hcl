variables {
  fleet = { name = "test", domain = "relay.example.net", ports = { https = 10443, stun = 13478 } }
  regions = {
    fra = { derp_region_id = 901, title = "Frankfurt", target = "local", nodes = 2, voters = 1, latitude = 50.1, longitude = 8.7 }
    syd = { derp_region_id = 903, title = "Sydney", target = "local", nodes = 1 }
  }
  machines = {
    "fra-1" = { region = "fra", ordinal = 1, derp_region_id = 901, fqdn = "fra-1.relay.example.net", voter = true, id = "1", public_ipv4 = "192.0.2.1", internal = "192.0.2.1:7443" }
    "fra-2" = { region = "fra", ordinal = 2, derp_region_id = 901, fqdn = "fra-2.relay.example.net", voter = false, id = "2", public_ipv6 = "2001:db8::2", internal = "[2001:db8::2]:7443" }
    "syd-1" = { region = "syd", ordinal = 1, derp_region_id = 903, fqdn = "syd-1.relay.example.net", voter = false, id = "3", public_ipv4 = "192.0.2.3", public_ipv6 = "2001:db8::3", internal = "192.0.2.3:7443" }
  }
}

run "the_map_has_the_field_names_and_types_of_derp" {
  command = plan

  assert {
    condition = output.derp_map_json == jsonencode({
      Regions = {
        "901" = {
          RegionID = 901, RegionCode = "fra", RegionName = "Frankfurt", Latitude = 50.1, Longitude = 8.7
          Nodes = [
            { Name = "fra-1", RegionID = 901, HostName = "fra-1.relay.example.net", IPv4 = "192.0.2.1", DERPPort = 10443, STUNPort = 13478, CanPort80 = true },
            { Name = "fra-2", RegionID = 901, HostName = "fra-2.relay.example.net", IPv6 = "2001:db8::2", DERPPort = 10443, STUNPort = 13478, CanPort80 = true },
          ]
        }
        "903" = {
          RegionID = 903, RegionCode = "syd", RegionName = "Sydney"
          Nodes = [
            { Name = "syd-1", RegionID = 903, HostName = "syd-1.relay.example.net", IPv4 = "192.0.2.3", IPv6 = "2001:db8::3", DERPPort = 10443, STUNPort = 13478, CanPort80 = true },
          ]
        }
      }
    })
    error_message = "wrong map: ${output.derp_map_json}"
  }
  assert {
    condition     = jsonencode(output.voters) == jsonencode(["fra-1"])
    error_message = "wrong voters: ${jsonencode(output.voters)}"
  }
}

run "default_ports_are_left_out" {
  command = plan

  variables {
    fleet = { name = "test", domain = "relay.example.net" }
  }

  assert {
    condition     = !strcontains(output.derp_map_json, "DERPPort") && !strcontains(output.derp_map_json, "STUNPort")
    error_message = "443 and 3478 go without saying"
  }
}

run "a_moved_http_port_is_no_port_80" {
  command = plan

  variables {
    fleet = { name = "test", domain = "relay.example.net", ports = { http = 10080 } }
  }

  assert {
    condition     = !strcontains(output.derp_map_json, "CanPort80")
    error_message = "CanPort80 means port 80"
  }
}

run "the_tenth_node_follows_the_ninth_and_a_region_without_machines_is_left_out" {
  command = plan

  variables {
    machines = {
      for ordinal in range(1, 11) : "fra-${ordinal}" => {
        region = "fra", ordinal = ordinal, derp_region_id = 901, fqdn = "fra-${ordinal}.relay.example.net", voter = false, id = "x", public_ipv4 = "192.0.2.${ordinal}", internal = "192.0.2.${ordinal}:7443"
      }
    }
  }

  assert {
    condition     = jsonencode([for node in jsondecode(output.derp_map_json).Regions["901"].Nodes : node.Name]) == jsonencode([for ordinal in range(1, 11) : "fra-${ordinal}"])
    error_message = "wrong order: ${output.derp_map_json}"
  }
  assert {
    condition     = jsonencode(keys(jsondecode(output.derp_map_json).Regions)) == jsonencode(["901"])
    error_message = "a region without machines must not be listed"
  }
}

run "the_digest_follows_the_voters" {
  command = plan

  variables {
    machines = {
      "fra-1" = { region = "fra", ordinal = 1, derp_region_id = 901, fqdn = "fra-1.relay.example.net", voter = false, id = "1", public_ipv4 = "192.0.2.1", internal = "192.0.2.1:7443" }
      "fra-2" = { region = "fra", ordinal = 2, derp_region_id = 901, fqdn = "fra-2.relay.example.net", voter = true, id = "2", public_ipv6 = "2001:db8::2", internal = "[2001:db8::2]:7443" }
      "syd-1" = { region = "syd", ordinal = 1, derp_region_id = 903, fqdn = "syd-1.relay.example.net", voter = false, id = "3", public_ipv4 = "192.0.2.3", public_ipv6 = "2001:db8::3", internal = "192.0.2.3:7443" }
    }
  }

  assert {
    condition     = output.derp_map_json == run.the_map_has_the_field_names_and_types_of_derp.derp_map_json && output.digest != run.the_map_has_the_field_names_and_types_of_derp.digest
    error_message = "other voters are another digest, and the same map"
  }
}

run "a_machine_of_no_region_is_refused" {
  command = plan

  variables {
    machines = {
      "ams-1" = { region = "ams", ordinal = 1, derp_region_id = 904, fqdn = "ams-1.relay.example.net", voter = false, id = "1", public_ipv4 = "192.0.2.1", internal = "192.0.2.1:7443" }
    }
  }

  expect_failures = [var.machines]
}

run "a_machine_without_an_address_is_refused" {
  command = plan

  variables {
    machines = {
      "fra-1" = { region = "fra", ordinal = 1, derp_region_id = 901, fqdn = "fra-1.relay.example.net", voter = false, id = "1", internal = "192.0.2.1:7443" }
    }
  }

  expect_failures = [var.machines]
}
