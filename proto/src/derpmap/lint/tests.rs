#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::any_map;
use super::*;
use Level::{Error, Note, Warning};

/// A map without any finding.
fn clean() -> Value {
    let node = |name: &str, id: u64| json!({"Name": name, "RegionID": id, "HostName": format!("{name}.relay.example"), "IPv4": "192.0.2.1", "DERPPort": id});
    let region = |id: u64, code: &str| json!({"RegionID": id, "RegionCode": code, "RegionName": code, "Nodes": [node(&format!("{id}a"), id)]});
    json!({"omitDefaultRegions": true, "Regions": {"900": region(900, "fra"), "901": region(901, "hel")}})
}

fn lint_value(map: &Value) -> Vec<Finding> {
    lint(map.to_string().as_bytes())
}

fn second_node() -> Value {
    json!({"Name": "900b", "RegionID": 900, "HostName": "900b.relay.example", "IPv4": "192.0.2.2"})
}

#[test]
fn a_clean_map_has_no_findings() {
    assert_eq!(lint_value(&clean()), []);
}

#[test]
fn each_fault_is_found_where_it_is() {
    type Change = fn(&mut Value);
    const REGION: &str = "/Regions/900";
    fn set(map: &mut Value, pointer: &str, field: &str, value: Value) {
        map.pointer_mut(pointer).unwrap()[field] = value;
    }
    fn region(map: &mut Value, field: &str, value: Value) {
        set(map, REGION, field, value);
    }
    fn node(map: &mut Value, field: &str, value: Value) {
        set(map, "/Regions/900/Nodes/0", field, value);
    }
    fn add_node(map: &mut Value, node: Value) {
        map.pointer_mut("/Regions/900/Nodes").unwrap().as_array_mut().unwrap().push(node);
    }
    fn renumber(map: &mut Value, id: u64) {
        let mut region = map["Regions"].as_object_mut().unwrap().remove("900").unwrap();
        region["RegionID"] = id.into();
        region["Nodes"][0]["RegionID"] = id.into();
        map["Regions"][id.to_string()] = region;
    }
    let cases: &[(Change, Level, &str, &str)] = &[
        // The whole map.
        (|m| m["Regions"] = json!({}), Error, "Regions", "no region"),
        (|m| m["Regions"] = json!(null), Error, "Regions", "no region"),
        (|m| *m = json!({"derpMap": m.clone()}), Error, "", "policy file"),
        (|m| *m = json!([1]), Error, "", "a list"),
        (|m| m["Regons"] = json!({}), Warning, "Regons", "is no field"),
        (|m| m["OmitDefaultRegions"] = json!(true), Warning, "omitDefaultRegions", "twice"),
        (|m| m["homeparams"] = json!({}), Note, "homeparams", "`HomeParams`"),
        (|m| m["HomeParams"] = json!({"RegionScore": {"900": 0.5}}), Note, "HomeParams", "Headscale drops"),
        (|m| m["HomeParams"] = json!({"RegionScore": {"900": -1}}), Warning, "HomeParams.RegionScore[900]", "ignored"),
        (|m| m["HomeParams"] = json!({"RegionScore": {"7": 0.5}}), Warning, "HomeParams.RegionScore[7]", "no such region"),
        (|m| m["HomeParams"] = json!({"RegionScore": {"900": "1"}}), Error, "HomeParams.RegionScore[900]", "a text"),
        (|m| m["HomeParams"] = json!({"RegionScore": {"x": 1}}), Error, "HomeParams.RegionScore[x]", "no region id"),
        // Regions.
        (|m| m["Regions"]["nine"] = json!({}), Error, "Regions[nine]", "no region id"),
        (|m| m["Regions"]["0900"] = json!({}), Error, "Regions[0900]", "no region id"),
        (|m| m["Regions"]["902"] = json!(null), Error, "Regions[902]", "is null"),
        (|m| region(m, "RegionID", json!(901)), Error, "Regions[900].RegionID", "is 901"),
        (|m| region(m, "RegionID", json!(null)), Error, "Regions[900].RegionID", "is missing"),
        (|m| region(m, "RegionID", json!("900")), Error, "Regions[900].RegionID", "refuse the whole map"),
        (|m| region(m, "RegionID", json!(900.5)), Error, "Regions[900].RegionID", "a number"),
        (|m| region(m, "RegionID", json!(-900)), Error, "Regions[900].RegionID", "out of range"),
        (|m| renumber(m, 1 << 53), Error, "Regions[9007199254740992].RegionID", "2^53 - 1"),
        (|m| renumber(m, 1000), Warning, "Regions[1000].RegionID", "outside 900 to 999"),
        (|m| renumber(m, 7), Warning, "Regions[7].RegionID", "outside 900 to 999"),
        (
            |m| {
                renumber(m, 7);
                m["omitDefaultRegions"] = json!(false);
            },
            Warning,
            "Regions[7].RegionID",
            "replace a region of the vendor's",
        ),
        (|m| region(m, "RegionCode", json!("")), Error, "Regions[900].RegionCode", "is missing"),
        (|m| region(m, "RegionCode", json!("hel")), Warning, "Regions[901].RegionCode", "region 900's too"),
        (|m| region(m, "RegionName", json!("")), Note, "Regions[900].RegionName", "is missing"),
        (|m| region(m, "Latitude", json!(91)), Warning, "Regions[900].Latitude", "91"),
        (|m| region(m, "Longitude", json!(-181)), Warning, "Regions[900].Longitude", "-181"),
        (|m| region(m, "Avoid", json!(true)), Warning, "Regions[900].Avoid", "deprecated"),
        (|m| region(m, "avoid", json!(false)), Note, "Regions[900].avoid", "`Avoid`"),
        (|m| region(m, "Country", json!("de")), Warning, "Regions[900].Country", "is no field"),
        (|m| region(m, "Nodes", json!([])), Error, "Regions[900].Nodes", "no node"),
        (|m| region(m, "Nodes", json!([null])), Error, "Regions[900].Nodes[0]", "is null"),
        (|m| region(m, "Nodes", json!({})), Error, "Regions[900].Nodes", "an object"),
        (|m| node(m, "STUNOnly", json!(true)), Error, "Regions[900].Nodes", "no relay"),
        (
            |m| {
                node(m, "STUNOnly", json!(true));
                add_node(m, second_node());
            },
            Warning,
            "Regions[900].Nodes",
            "the first node is no relay",
        ),
        (|m| node(m, "STUNPort", json!(-1)), Warning, "Regions[900].Nodes", "no node has STUN"),
        (
            |m| {
                region(m, "NoMeasureNoHome", json!(true));
                set(m, "/Regions/901", "NoMeasureNoHome", json!(true));
            },
            Error,
            "Regions",
            "no client has a home",
        ),
        (|m| add_node(m, second_node()), Note, "Regions", "Headscale shuffles"),
        // Nodes.
        (|m| node(m, "Name", json!("")), Error, "Regions[900].Nodes[0].Name", "is missing"),
        (|m| node(m, "Name", json!("901a")), Error, "Regions[901].Nodes[0].Name", "the name of Regions[900].Nodes[0] too"),
        (|m| node(m, "RegionID", json!(null)), Error, "Regions[900].Nodes[0].RegionID", "measurements are lost"),
        (|m| node(m, "RegionID", json!(901)), Error, "Regions[900].Nodes[0].RegionID", "is 901"),
        (|m| node(m, "HostName", json!("")), Error, "Regions[900].Nodes[0].HostName", "is missing"),
        (|m| node(m, "HostName", json!("https://r.example")), Error, "Regions[900].Nodes[0].HostName", "no DNS name"),
        (|m| node(m, "HostName", json!("r.example:443")), Error, "Regions[900].Nodes[0].HostName", "no DNS name"),
        (|m| node(m, "HostName", json!("192.0.2.1")), Warning, "Regions[900].Nodes[0].HostName", "mesh probe"),
        (
            |m| {
                node(m, "HostName", json!("192.0.2.1"));
                node(m, "CertName", json!(format!("sha256-raw:{}", "0f".repeat(32))));
            },
            Note,
            "Regions[900].Nodes[0].HostName",
            "mesh probe",
        ),
        (|m| node(m, "CertName", json!("sha256-raw:0f")), Error, "Regions[900].Nodes[0].CertName", "neither"),
        (|m| node(m, "CertName", json!("sha256:00")), Error, "Regions[900].Nodes[0].CertName", "neither"),
        (|m| node(m, "DERPPort", json!(65_536)), Error, "Regions[900].Nodes[0].DERPPort", "65536"),
        (|m| node(m, "DERPPort", json!("443")), Error, "Regions[900].Nodes[0].DERPPort", "a text"),
        (|m| node(m, "DERPPort", json!(1_u64 << 40)), Error, "Regions[900].Nodes[0].DERPPort", "out of range"),
        (|m| node(m, "STUNPort", json!(-2)), Error, "Regions[900].Nodes[0].STUNPort", "-2"),
        (|m| node(m, "CanPort80", json!("yes")), Error, "Regions[900].Nodes[0].CanPort80", "a text"),
        (
            |m| add_node(m, json!({"Name": "s", "RegionID": 900, "HostName": "s.example", "STUNOnly": true, "STUNPort": -1})),
            Warning,
            "Regions[900].Nodes[1].STUNOnly",
            "offers nothing",
        ),
        (|m| node(m, "STUNTestIP", json!("192.0.2.7")), Warning, "Regions[900].Nodes[0].STUNTestIP", "for tests"),
        (|m| node(m, "InsecureForTests", json!(true)), Warning, "Regions[900].Nodes[0].InsecureForTests", "pose as"),
        (|m| node(m, "IPv4", json!("192.0.2.300")), Error, "Regions[900].Nodes[0].IPv4", "take it for `none`"),
        (|m| node(m, "IPv4", json!("0.0.0.0")), Error, "Regions[900].Nodes[0].IPv4", "nobody can dial"),
        (|m| node(m, "IPv6", json!("192.0.2.1")), Error, "Regions[900].Nodes[0].IPv6", "take it for `none`"),
        (
            |m| {
                node(m, "IPv4", json!("none"));
                node(m, "IPv6", json!("none"));
            },
            Error,
            "Regions[900].Nodes[0]",
            "neither IPv4 nor IPv6",
        ),
        (|m| node(m, "DERPPort", json!(901)), Warning, "Regions[901].Nodes[0]", "two regions have one latency"),
        (
            |m| {
                let again =
                    json!({"Name": "900b", "RegionID": 900, "HostName": "x.example", "IPv4": "192.0.2.1", "DERPPort": 900});
                add_node(m, again);
            },
            Warning,
            "Regions[900].Nodes[1]",
            "the same server as Regions[900].Nodes[0]",
        ),
    ];
    for (change, level, path, problem) in cases {
        let mut map = clean();
        change(&mut map);
        let findings = lint_value(&map);
        let found =
            findings.iter().any(|f| f.level == *level && f.path == *path && f.problem.contains(problem) && !f.advice.is_empty());
        assert!(found, "{level} {path} {problem}: {findings:?}");
    }
}

#[test]
fn what_is_only_close_to_json_is_named() {
    let told = |text: &str| {
        let findings = lint(text.as_bytes());
        assert_eq!((findings.len(), findings[0].level), (1, Error), "{findings:?}");
        findings[0].to_string()
    };
    assert!(told("regions:\n  900:\n    regionid: 900\n").contains("YAML"));
    assert!(told("# my relays\nregions:\n").contains("derp.urls"));
    assert!(told("").contains("empty"));
    assert!(told("{\n  // ours\n  \"Regions\": {}\n}").contains("policy files"));
    assert!(told("{\"Regions\": {}").contains("line 1 column"));
    assert!(told(&"[".repeat(40)).contains("nested too deep"));
    assert!(told(&" ".repeat(DERP_MAP_LEN_MAX + 1)).contains("bytes"));
    let twice = r#"{"Regions": {"900": {}, "900": {}}}"#;
    assert!(lint(twice.as_bytes()).iter().any(|f| f.path == "Regions[900]" && f.problem.contains("twice")));
}

#[test]
fn a_map_that_stands_in_for_other_regions_and_local_tests_are_clean() {
    let mut map = clean();
    let stand_in = json!({"Name": "901a@900", "RegionID": 900, "HostName": "901a.relay.example", "IPv4": "192.0.2.1", "DERPPort": 901, "STUNPort": -1});
    map["Regions"]["900"]["Nodes"].as_array_mut().unwrap().push(stand_in);
    map["Regions"]["901"]["Nodes"][0]["IPv4"] = json!("127.0.0.1");
    map["Regions"]["901"]["Nodes"][0]["InsecureForTests"] = json!(true);
    let findings = lint_value(&map);
    assert!(findings.iter().all(|finding| finding.level == Note), "{findings:?}");
}

#[test]
fn errors_come_first_and_what_validation_refuses_is_always_an_error() {
    let mut map = clean();
    map["Regions"]["900"]["Avoid"] = json!(true);
    map["Regions"]["901"]["Nodes"][0]["HostName"] = json!("");
    let levels: Vec<Level> = lint_value(&map).iter().map(|finding| finding.level).collect();
    assert_eq!(levels, [Error, Warning]);
    assert!(DerpMap::from_json(map.to_string().as_bytes()).unwrap().validate().is_err());
}

proptest! {
    #[test]
    fn what_validation_refuses_is_found(map in any_map()) {
        let faulty = lint(&map.to_json()).iter().any(|finding| finding.level != Note);
        prop_assert!(faulty || map.validate().is_ok());
    }

    #[test]
    fn no_text_panics(bytes in vec(any::<u8>(), 0..300)) {
        drop(lint(&bytes));
    }
}
