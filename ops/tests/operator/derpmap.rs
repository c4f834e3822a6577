//! `causeway derpmap`: settings, and any map that is checked.

use crate::program::{Served, at, causeway, stderr, stdout};

#[tokio::test]
async fn derp_map_settings_are_printed_as_they_are_applied() {
    let (served, socket) = Served::on_socket();
    let printed = at(&socket, &["derpmap", "settings"]).await;
    let expected = "mode = \"cross-listed\"\ngrace_seconds = 60\nmerge_default_regions = false\n\n\
                    [regions.901]\nscore = 0.5\navoid = false\nno_measure_no_home = false\n";
    assert_eq!(stdout(&printed), expected, "{}", stderr(&printed));
    let file = served.dir.path().join("map.toml");
    let yaml = at(&socket, &["derpmap", "show", "--yaml"]).await;
    assert!(stdout(&yaml).contains("regions:\n  901:\n    nodes:\n      - derpport: 4443\n"), "{}", stdout(&yaml));
    let apply = async |text: &str| {
        std::fs::write(&file, text).expect("written");
        at(&socket, &["derpmap", "apply", file.to_str().expect("text"), "--dry-run"]).await
    };
    let applied = apply(expected).await;
    assert_eq!(
        stdout(&applied),
        "settings         not changed (dry run)\nregions edited   901, 902\nregions added    -\nregions retired  903\n\
         error: Regions[901].Nodes[0].HostName: is missing; the DNS name of the node, which its certificate has too\n",
        "{}",
        stderr(&applied)
    );
    assert_eq!(applied.status.code(), Some(0));
    for (text, code, why) in [
        ("mode = 'balanced'", 2, "map.toml: regions.901.balancer: is missing"),
        ("mode = 'plain'", 4, "ask node `b-1`"),
        ("mode = 'other'", 2, "map.toml: TOML parse error at line 1"),
    ] {
        let refused = apply(text).await;
        assert_eq!(refused.status.code(), Some(code), "{text}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(why), "{text}: {}", stderr(&refused));
    }
    let absent = at(&socket, &["derpmap", "apply", "/nonexistent/map.toml"]).await;
    assert_eq!(absent.status.code(), Some(3), "{}", stderr(&absent));
}

#[tokio::test]
async fn maps_are_checked_from_files_and_standard_input_without_any_node() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("map.json");
    let good = r#"{"omitDefaultRegions":true,"Regions":{"901":{"RegionID":901,"RegionCode":"a","RegionName":"A","Nodes":[{"Name":"a","RegionID":901,"HostName":"a.example"}]}}}"#;
    let path = file.to_str().expect("text");
    std::fs::write(&file, good).expect("written");
    let checked = causeway(&["derpmap", "check", path]).await;
    assert_eq!(stdout(&checked), format!("{path}: 0 errors, 0 warnings, 0 notes\n"));
    assert_eq!(checked.status.code(), Some(0));
    std::fs::write(&file, good.replace("a.example", "")).expect("written");
    let checked = causeway(&["-o", "json", "derpmap", "check", path]).await;
    assert_eq!(checked.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_str(stdout(&checked)).expect("JSON");
    assert_eq!((&found["errors"], &found["warnings"]), (&1.into(), &0.into()));
    assert_eq!(found["findings"][0]["level"], "error");
    assert_eq!(found["findings"][0]["path"], "Regions[901].Nodes[0].HostName");
    assert!(stderr(&checked).contains("has errors"), "{}", stderr(&checked));
    let yaml = dir.path().join("map.yaml");
    let yaml = yaml.to_str().expect("text");
    std::fs::write(yaml, "regions:\n  900:\n    regionid: 900\n    regioncode: a\n    nodes: []\n    RegionName: A\n")
        .expect("written");
    let checked = causeway(&["derpmap", "check", yaml]).await;
    let expected = "error: regions[900].nodes: there is no node; list one, or leave the region out: a peer that has it as its home is unreachable\n\
                    warning: regions[900].RegionName: is not in lower case: Headscale ignores it; `regionname`\n\
                    note: regions[900].regionname: is missing; a name that people read, such as `Frankfurt`\n";
    assert_eq!(stdout(&checked), format!("{expected}{yaml}: 1 errors, 1 warnings, 1 notes\n"));
    assert_eq!(checked.status.code(), Some(1));
    // By its name a file is for Headscale, where JSON's names are not those it knows.
    std::fs::write(yaml, good).expect("written");
    let checked = causeway(&["derpmap", "check", yaml]).await;
    assert!(stdout(&checked).contains("error: regions: there is no region"), "{}", stdout(&checked));
    for (source, code, why) in [
        ("/nonexistent/map.json", 3, "/nonexistent/map.json"),
        ("ftp://relay.example/derpmap", 2, "https://"),
        ("https://127.0.0.1:1/derpmap", 4, "127.0.0.1:1"),
        // Nothing is on standard input here.
        ("-", 1, "- has errors"),
    ] {
        let refused = causeway(&["derpmap", "check", source]).await;
        assert_eq!(refused.status.code(), Some(code), "{source}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(why), "{source}: {}", stderr(&refused));
    }
}
