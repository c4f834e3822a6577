#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn parse_text(json: &str) -> Result<ClientInfo, InfoError> {
    ClientInfo::from_json(json.as_bytes())
}

#[test]
fn client_infos_that_stock_servers_accept() {
    let key: MeshKey = HEX.parse().unwrap();
    let nothing = ClientInfo::default();
    let full = ClientInfo { mesh_key: Some(key.clone()), version: 5, ..ClientInfo::default() };
    let deepest = format!(r#"{{"x":{}{}}}"#, "[".repeat(15), "]".repeat(15));
    let version = |version| ClientInfo { version, ..ClientInfo::default() };
    let cases: Vec<(String, ClientInfo)> = vec![
        ("{}".into(), nothing.clone()),
        (format!(r#"{{"Version":5,"MeshKey":"{HEX}"}}"#), full.clone()),
        (format!(r#"{{"VERSION":5,"MESHKEY":"{}"}}"#, HEX.to_uppercase()), full),
        (r#"{"x":{"y":[1,{"z":null}]},"":"","version":2}"#.into(), version(2)),
        (deepest, nothing.clone()),
        (r#"{"version":0}"#.into(), nothing.clone()),
        (r#"{"version":99}"#.into(), version(99)),
        (r#"{"version":-1}"#.into(), version(-1)),
        (r#"{"version":9223372036854775807}"#.into(), version(i64::MAX)),
        (r#"{"version":1,"Version":3}"#.into(), version(3)),
        (r#"{"version":null,"CanAckPings":null,"AppName":null}"#.into(), nothing.clone()),
        (r#"{"canackpings":true}"#.into(), ClientInfo { can_ack_pings: true, ..nothing.clone() }),
        (r#"{"isprober":true}"#.into(), ClientInfo { is_prober: true, ..nothing.clone() }),
        (r#"{"appname":"a\u00e9"}"#.into(), ClientInfo { app_name: "aé".into(), ..nothing.clone() }),
        (format!(r#"{{"meshKey":"{}"}}"#, "0".repeat(64)), nothing),
    ];
    for (json, want) in cases {
        assert_eq!(parse_text(&json), Ok(want), "{json}");
    }
}

#[test]
fn client_infos_that_stock_servers_refuse() {
    let too_deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(16), "]".repeat(16));
    assert_eq!(parse_text(&too_deep), Err(InfoError::Depth));
    let wrong_keys = ["".to_owned(), HEX[1..].to_owned(), format!("{HEX}0"), format!(" {}", &HEX[1..]), "g".repeat(64)];
    let with_key = wrong_keys.iter().map(|key| format!(r#"{{"meshKey":"{key}"}}"#));
    let others = [
        r#"{"meshKey":null}"#,
        r#"{"meshKey":5}"#,
        r#"{"version":"x"}"#,
        r#"{"version":2.5}"#,
        r#"{"version":2.0}"#,
        r#"{"version":9223372036854775808}"#,
        r#"{"version":true}"#,
        r#"{"CanAckPings":1}"#,
        r#"{"AppName":{}}"#,
        "[]",
        "[{}]",
        "\"\"",
        "2",
        "",
        "{",
        "{} x",
        "{\"version\":2,}",
    ];
    for json in with_key.chain(others.map(str::to_owned)) {
        assert!(matches!(parse_text(&json), Err(InfoError::Json { .. })), "{json}");
    }
}

#[test]
fn an_error_never_echoes_the_login() {
    let error = parse_text(&format!(r#"{{"version":2,"meshKey":"{HEX}f"}}"#)).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&HEX[..8]));
}

#[test]
fn fields_are_written_as_stock_software_writes_them() {
    let text = |json: Vec<u8>| String::from_utf8(json).unwrap();
    assert_eq!(text(ClientInfo::default().to_json()), r#"{"CanAckPings":false}"#);
    assert_eq!(text(ClientInfo::current().to_json()), r#"{"version":2,"CanAckPings":false}"#);
    let full = ClientInfo {
        mesh_key: Some(HEX.parse().unwrap()),
        version: 2,
        can_ack_pings: true,
        is_prober: true,
        app_name: "app".into(),
    };
    let want = format!(r#"{{"meshKey":"{HEX}","version":2,"CanAckPings":true,"IsProber":true,"AppName":"app"}}"#);
    assert_eq!(text(full.to_json()), want);
    assert_eq!(text(ServerInfo::current().to_json()), r#"{"version":2}"#);
    let limited = ServerInfo { version: 2, token_bucket_bytes_per_second: 10, token_bucket_bytes_burst: 20 };
    assert_eq!(text(limited.to_json()), r#"{"version":2,"TokenBucketBytesPerSecond":10,"TokenBucketBytesBurst":20}"#);
    assert_eq!(ServerInfo::from_json(br#"{"VERSION":2,"tokenbucketbytespersecond":10,"TokenBucketBytesBurst":20}"#), Ok(limited));
}

proptest! {
    #[test]
    fn client_infos_round_trip(version: i64, can_ack_pings: bool, is_prober: bool, app_name: String, key: Option<[u8; 32]>) {
        let hex = key.map(|key| data_encoding::HEXLOWER.encode(&key));
        let mesh_key = hex.and_then(|hex| hex.parse().ok());
        let info = ClientInfo { mesh_key, version, can_ack_pings, is_prober, app_name };
        prop_assert_eq!(ClientInfo::from_json(&info.to_json()), Ok(info));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(info) = ClientInfo::from_json(&bytes) {
            prop_assert_eq!(ClientInfo::from_json(&info.to_json()), Ok(info));
        }
    }
}
