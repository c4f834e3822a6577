#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn node(name: &str, region: u64) -> Node {
    Node { name: name.into(), region_id: RegionId(region), host_name: "relay.example".into(), ..Node::default() }
}

fn region(id: u64, nodes: Vec<Node>) -> Region {
    Region { region_id: RegionId(id), region_code: "fra".into(), region_name: "Frankfurt".into(), nodes, ..Region::default() }
}

fn map(regions: Vec<Region>) -> DerpMap {
    DerpMap { regions: regions.into_iter().map(|region| (region.region_id, region)).collect(), ..DerpMap::default() }
}

#[test]
fn json_has_tailscales_names_and_order_and_leaves_empty_fields_out() {
    let text = |map: &DerpMap| String::from_utf8(map.to_json()).unwrap();
    assert_eq!(text(&DerpMap::default()), r#"{"Regions":{}}"#);
    let small = map(vec![region(900, vec![node("900a", 900)])]);
    assert_eq!(
        text(&small),
        r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"fra","RegionName":"Frankfurt","Nodes":[{"Name":"900a","RegionID":900,"HostName":"relay.example"}]}}}"#
    );
    let full_node = Node {
        cert_name: "c.example".into(),
        ipv4: "192.0.2.1".into(),
        ipv6: "none".into(),
        stun_port: -1,
        stun_only: true,
        derp_port: 8443,
        insecure_for_tests: true,
        stun_test_ip: "192.0.2.2".into(),
        can_port80: true,
        ..node("901a", 901)
    };
    let full = Region { latitude: 50.5, longitude: -8.25, avoid: true, no_measure_no_home: true, ..region(901, vec![full_node]) };
    let full = DerpMap {
        home_params: Some(HomeParams { region_score: Some([(RegionId(901), 0.5)].into()) }),
        omit_default_regions: true,
        ..map(vec![full])
    };
    assert_eq!(
        text(&full),
        concat!(
            r#"{"HomeParams":{"RegionScore":{"901":0.5}},"Regions":{"901":{"RegionID":901,"RegionCode":"fra","#,
            r#""RegionName":"Frankfurt","Latitude":50.5,"Longitude":-8.25,"Avoid":true,"NoMeasureNoHome":true,"Nodes":["#,
            r#"{"Name":"901a","RegionID":901,"HostName":"relay.example","CertName":"c.example","IPv4":"192.0.2.1","#,
            r#""IPv6":"none","STUNPort":-1,"STUNOnly":true,"DERPPort":8443,"InsecureForTests":true,"#,
            r#""STUNTestIP":"192.0.2.2","CanPort80":true}]}},"omitDefaultRegions":true}"#
        )
    );
    assert_eq!(DerpMap::from_json(&full.to_json()), Ok(full));
}

#[test]
fn names_are_read_without_regard_to_case_and_unknown_or_null_fields_are_ignored() {
    let json = r#"{"regions":{"900":{"regionid":900,"REGIONCODE":"fra","regionname":"Frankfurt","nodes":[
        {"name":"900a","regionid":900,"hostname":"relay.example","stunport":null,"Future":[{}]}],"Avoid":null}},"HomeParams":null}"#;
    assert_eq!(DerpMap::from_json(json.as_bytes()), Ok(map(vec![region(900, vec![node("900a", 900)])])));
    assert_eq!(DerpMap::from_json(br#"{"Regions":null}"#), Ok(DerpMap::default()));
}

#[test]
fn errors_of_the_json_name_the_field() {
    let told = |json: &str| DerpMap::from_json(json.as_bytes()).unwrap_err().to_string();
    let port = told(r#"{"Regions":{"1":{"RegionID":1,"Nodes":[{"DERPPort":"x"}]}}}"#);
    assert!(port.contains("`Regions`: `Nodes`: `DERPPort`") && port.contains("expected i32"), "{port}");
    assert!(told(r#"{"Regions":{"one":{}}}"#).contains("`Regions`"));
    assert!(matches!(DerpMap::from_json(&[b'['; 17]), Err(DerpMapError::Depth)));
    assert!(matches!(DerpMap::from_json(&vec![b' '; DERP_MAP_LEN_MAX + 1]), Err(DerpMapError::TooLong(_))));
}

#[test]
fn validation_names_the_field_what_it_is_and_what_it_must_be() {
    type Change = fn(&mut Region);
    let cases: [(Change, &str, &str); 15] = [
        (|r| r.region_id = RegionId(901), "RegionID", "the key it stands under"),
        (|r| r.region_code.clear(), "RegionCode", "a short code"),
        (|r| r.latitude = 90.5, "Latitude", "-90 to 90"),
        (|r| r.latitude = f64::NAN, "Latitude", "-90 to 90"),
        (|r| r.longitude = -181.0, "Longitude", "-180 to 180"),
        (|r| r.nodes[0].name.clear(), "Nodes[0].Name", "a name"),
        (|r| r.nodes[1].name = "900a".into(), "Nodes[1].Name", "no other node"),
        (|r| r.nodes[1].region_id = RegionId(1), "Nodes[1].RegionID", "region it stands in"),
        (|r| r.nodes[0].host_name.clear(), "Nodes[0].HostName", "a DNS name"),
        (|r| r.nodes[0].host_name = "a b".into(), "Nodes[0].HostName", "a DNS name"),
        (|r| r.nodes[0].cert_name = "sha256-raw:12".into(), "Nodes[0].CertName", "64 hex digits"),
        (|r| r.nodes[0].derp_port = -1, "Nodes[0].DERPPort", "0 for 443"),
        (|r| r.nodes[0].derp_port = 65_536, "Nodes[0].DERPPort", "0 for 443"),
        (|r| r.nodes[0].stun_port = -2, "Nodes[0].STUNPort", "-1 for no STUN"),
        (|r| r.nodes[0].stun_test_ip = "x".into(), "Nodes[0].STUNTestIP", "an IP address"),
    ];
    let good = || region(900, vec![node("900a", 900), node("900b", 900)]);
    assert_eq!(map(vec![good()]).validate(), Ok(()));
    for (change, field, must) in cases {
        let mut changed = good();
        change(&mut changed);
        let map = DerpMap { regions: [(RegionId(900), changed)].into(), ..DerpMap::default() };
        let told = map.validate().unwrap_err().to_string();
        assert!(told.contains(&format!("`Regions[900].{field}`")) && told.contains(must), "{told}");
    }
}

#[test]
fn region_ids_and_names_are_judged_over_the_whole_map() {
    for id in [0, REGION_ID_MAX + 1] {
        assert!(map(vec![region(id, vec![])]).validate().is_err(), "{id}");
    }
    assert_eq!(map(vec![region(REGION_ID_MAX, vec![])]).validate(), Ok(()));
    assert!(map(vec![region(1, vec![node("a", 1)]), region(2, vec![node("a", 2)])]).validate().is_err());
}

#[test]
fn ports_and_addresses_mean_what_clients_take_them_for() {
    let mut node = node("900a", 900);
    assert_eq!((node.derp_port(), node.stun_port()), (Some(443), Some(3478)));
    assert_eq!((node.ipv4(), node.ipv6()), (NodeAddress::Dns, NodeAddress::Dns));
    (node.derp_port, node.stun_port) = (8443, -1);
    (node.ipv4, node.ipv6) = ("192.0.2.1".into(), "192.0.2.1".into());
    assert_eq!((node.derp_port(), node.stun_port()), (Some(8443), None));
    assert_eq!(node.ipv4(), NodeAddress::Fixed(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(node.ipv6(), NodeAddress::Disabled);
}

proptest! {
    #[test]
    fn maps_round_trip_and_equal_maps_have_equal_bytes(map in any_map()) {
        let json = map.to_json();
        let read = DerpMap::from_json(&json).unwrap();
        prop_assert_eq!(read.to_json(), json);
        prop_assert_eq!(read, map);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(map) = DerpMap::from_json(&bytes) {
            prop_assert_eq!(DerpMap::from_json(&map.to_json()), Ok(map));
        }
    }
}

pub(super) fn any_map() -> impl Strategy<Value = DerpMap> {
    let node = (".{0,5}", any::<u64>(), ".{0,9}", any::<(i32, i32, bool, bool)>()).prop_map(
        |(name, region, host_name, (derp_port, stun_port, stun_only, can_port80))| Node {
            name,
            region_id: RegionId(region),
            host_name,
            derp_port,
            stun_port,
            stun_only,
            can_port80,
            ..Node::default()
        },
    );
    // Quarters, so that JSON keeps them exactly and `-0.0` does not occur.
    let degrees = (-720_i32..=720).prop_map(|quarters| f64::from(quarters) / 4.0);
    let region = (any::<u64>(), ".{0,5}", degrees, vec(node, 0..4)).prop_map(|(id, region_code, latitude, nodes)| Region {
        region_id: RegionId(id),
        region_code,
        latitude,
        nodes,
        ..Region::default()
    });
    (btree_map(any::<u64>().prop_map(RegionId), region, 0..4), any::<bool>())
        .prop_map(|(regions, omit_default_regions)| DerpMap { regions, omit_default_regions, home_params: None })
}
