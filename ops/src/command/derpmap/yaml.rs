//! A DERP map as a file for Headscale's `derp.paths`: YAML, the names of fields in lower case, region ids without quotes.

use serde_json::Value;

/// What Headscale takes of a map: its regions.
pub(super) fn for_headscale(map: &Value) -> String {
    let mut text = "# For `derp.paths` of Headscale; made by `causeway derpmap show --yaml`.\nregions:\n".to_owned();
    for (id, region) in map["Regions"].as_object().into_iter().flatten() {
        text.push_str(&format!("  {id}:\n"));
        fields(region, "    ", &mut text);
    }
    text
}

/// The fields of a region or node, each line after `indent`.
fn fields(value: &Value, indent: &str, text: &mut String) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = name.to_ascii_lowercase();
        let Some(list) = value.as_array().filter(|list| !list.is_empty()) else {
            // JSON's scalars, and its empty list, are YAML as they are.
            text.push_str(&format!("{indent}{name}: {value}\n"));
            continue;
        };
        text.push_str(&format!("{indent}{name}:\n"));
        for item in list {
            let start = text.len();
            fields(item, &format!("{indent}    "), text);
            let dash = start + indent.len() + 2;
            if text.len() > dash {
                text.replace_range(dash..=dash, "-");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use causeway_proto::derpmap::lint::{is_yaml, lint_yaml};
    use serde_json::json;

    use super::*;

    #[test]
    fn headscale_reads_what_is_written_for_it() {
        let node = json!({"Name": "901a", "RegionID": 901, "HostName": "a.example", "IPv4": "127.0.0.1", "DERPPort": 4443, "CanPort80": true});
        let other = json!({"Name": "9\"b: #", "RegionID": 901, "HostName": "b.example", "STUNPort": -1});
        let region = json!({"RegionID": 901, "RegionCode": "a", "RegionName": "Ä: 1", "Latitude": 50.5, "Nodes": [node, other]});
        let map = json!({"omitDefaultRegions": true, "HomeParams": {"RegionScore": {}}, "Regions": {"901": region}});
        let yaml = for_headscale(&map);
        let expected = "regions:\n  901:\n    latitude: 50.5\n    nodes:\n      - canport80: true\n        derpport: 4443\n        hostname: \"a.example\"\n        \
                        ipv4: \"127.0.0.1\"\n        name: \"901a\"\n        regionid: 901\n      - hostname: \"b.example\"\n        name: \"9\\\"b: #\"\n        \
                        regionid: 901\n        stunport: -1\n    regioncode: \"a\"\n    regionid: 901\n    regionname: \"Ä: 1\"\n";
        assert_eq!(yaml.split_once('\n').map(|(_, rest)| rest), Some(expected));
        let findings = lint_yaml(yaml.as_bytes());
        assert!(is_yaml(yaml.as_bytes()));
        // Two nodes in a region, which Headscale shuffles.
        assert!(findings.len() == 1 && findings[0].path == "regions", "{findings:?}");
    }
}
