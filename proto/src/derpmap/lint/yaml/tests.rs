#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use Level::{Error, Note, Warning};

/// A file without any finding.
const CLEAN: &str = "# ours\nregions:\n  900:\n    regionid: 900\n    regioncode: fra\n    regionname: Frankfurt\n    latitude: 50\n    nodes:\n      \
                     - name: 900a\n        regionid: 900\n        hostname: a.relay.example\n        ipv4: 192.0.2.1\n        derpport: 443\n        canport80: yes\n";

fn found(text: &str) -> Vec<Finding> {
    lint_yaml(text.as_bytes())
}

#[test]
fn a_clean_file_has_no_findings() {
    assert_eq!(found(CLEAN), []);
    assert_eq!(
        found(
            "{regions: {900: {regionid: 900, regioncode: 5, regionname: f, nodes: [{name: a, regionid: 0x384, hostname: a.example}]}}}"
        ),
        []
    );
    assert!(is_yaml(CLEAN.as_bytes()) && is_yaml(b"---\nregions:") && is_yaml(b"regions:"));
    assert!(!is_yaml(b"{\"Regions\": {}}") && !is_yaml(b"\n [") && !is_yaml(b""));
}

// Each row was tried with the decoder of Headscale (gopkg.in/yaml.v3 3.0.1 into the types of tailscale.com/tailcfg).
#[test]
fn each_fault_is_found_where_it_is() {
    let cases: &[(&str, &str, Level, &str, &str)] = &[
        // Names.
        ("regions:\n", "Regions:\n", Warning, "Regions", "not in lower case"),
        ("regions:\n", "Regions:\n", Error, "regions", "no region"),
        ("hostname", "HostName", Warning, "regions[900].nodes[0].HostName", "not in lower case"),
        ("hostname", "HostName", Error, "regions[900].nodes[0].hostname", "is missing"),
        ("hostname", "host_name", Warning, "regions[900].nodes[0].host_name", "is no field"),
        ("latitude: 50", "regioncode: b", Error, "regions[900].regioncode", "refuses the file"),
        ("regions:", "omitdefaultregions: true\nregions:", Note, "omitdefaultregions", "drops it"),
        ("regions:", "homeparams: {regionscore: {900: 0.5}}\nregions:", Note, "homeparams", "Headscale drops"),
        // Region ids.
        ("  900:\n", "  \"900\":\n", Error, "regions[900]", "no region id"),
        ("  900:\n", "  fra:\n", Error, "regions[fra]", "no region id"),
        ("  900:\n", "  0:\n", Error, "regions[0]", "no region id"),
        ("  900:\n", "  900: {}\n  900:\n", Error, "regions[900]", "twice"),
        ("  900:\n", "  0900:\n", Note, "", ""),
        ("  900:\n", "  1: null\n  900:\n", Note, "regions[1]", "takes the region out"),
        ("regionid: 900\n    regioncode", "regionid: 901\n    regioncode", Error, "regions[900].regionid", "is 901"),
        // Values.
        ("    regionid: 900\n", "    regionid: \"900\"\n", Error, "regions[900].regionid", "is a text"),
        ("    regionid: 900\n", "    regionid: 900.5\n", Warning, "regions[900].regionid", "fraction"),
        ("    regionid: 900\n", "    regionid: 99999999999999999999\n", Error, "regions[900].regionid", "out of range"),
        ("latitude: 50", "latitude: \"50\"", Error, "regions[900].latitude", "is a text"),
        ("latitude: 50", "latitude: .inf", Error, "regions[900].latitude", "nothing that Headscale can tell"),
        ("derpport: 443", "derpport: .inf", Error, "regions[900].nodes[0].derpport", "is a number"),
        ("latitude: 50", "latitude: 91", Warning, "regions[900].latitude", "91"),
        ("regionname: Frankfurt", "regionname: [a]", Error, "regions[900].regionname", "is a list"),
        ("canport80: yes", "canport80: \"true\"", Error, "regions[900].nodes[0].canport80", "is a text"),
        ("derpport: 443", "derpport: 2024-01-01", Error, "regions[900].nodes[0].derpport", "is a text"),
        ("derpport: 443", "stunport: -2", Error, "regions[900].nodes[0].stunport", "-2"),
        ("derpport: 443", "stunonly: true\n        stunport: -1", Warning, "regions[900].nodes[0].stunonly", "`stunport`"),
        ("      - name", "      - null\n      - name", Error, "regions[900].nodes[0]", "is null"),
        ("ipv4: 192.0.2.1", "ipv4: 192.0.2.300", Error, "regions[900].nodes[0].ipv4", "take it for `none`"),
        // The file.
        (CLEAN, "", Error, "", "is empty"),
        (CLEAN, "# nothing\n", Error, "", "is empty"),
        (CLEAN, "- 1\n", Error, "", "a list"),
        (CLEAN, "{\"Regions\": {\"900\": {}}}", Warning, "Regions", "not in lower case"),
        ("  900:\n", "  900: [\n", Error, "", "is not YAML"),
        ("# ours\n", "---\na: 1\n---\n", Warning, "", "several documents"),
        ("  900:\n", "\t900:\n", Error, "", "is not YAML"),
    ];
    for (from, to, level, path, problem) in cases {
        assert!(CLEAN.contains(from), "{from}");
        let findings = found(&CLEAN.replacen(from, to, 1));
        if problem.is_empty() {
            assert_eq!(findings, [], "{to}");
            continue;
        }
        let is_found =
            findings.iter().any(|f| f.level == *level && f.path == *path && f.problem.contains(problem) && !f.advice.is_empty());
        assert!(is_found, "{to}: {level} {path} {problem}: {findings:?}");
    }
}

#[test]
fn a_file_that_only_removes_regions_is_fine() {
    let findings = found("regions:\n  1: null\n  2: ~\n");
    assert!(findings.len() == 2 && findings.iter().all(|finding| finding.level == Note), "{findings:?}");
}

#[test]
fn anchors_and_merges_are_followed() {
    let text = "x: &n\n  regionid: 900\n  hostname: a.example\nregions:\n  900:\n    regionid: 900\n    regioncode: f\n    regionname: f\n    nodes:\n      - {<<: *n, name: a}\n";
    let findings = found(text);
    assert!(findings.len() == 1 && findings[0].path == "x" && findings[0].level == Warning, "{findings:?}");
}

proptest! {
    #[test]
    fn no_text_panics(bytes in vec(any::<u8>(), 0..300), text in "[ \\n:\\[\\]{}&*!|>'\"%#a-z0-9,?-]{0,200}") {
        drop(lint_yaml(&bytes));
        drop(lint_yaml(text.as_bytes()));
        drop(lint_yaml(format!("{CLEAN}{text}").as_bytes()));
    }
}
