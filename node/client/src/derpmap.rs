//! Where a DERP map comes from: a file, or a node's `/derpmap`.

use std::path::PathBuf;
use std::time::Duration;

use causeway_proto::derpmap::DerpMap;
use causeway_proto::limits::DERP_MAP_LEN_MAX;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::dial::Route;
use crate::endpoint::Endpoint;
use crate::error::{ConnectError, MapError, Phase};
use crate::http;
use crate::tls::Trust;
use crate::transport::Transport;

/// Time for fetching a map.
pub const MAP_TIMEOUT: Duration = Duration::from_secs(10);

/// Loads and validates a DERP map from a URL or a file.
///
/// `http` URLs are for loopback only: the map says which servers to trust. `https` is verified by `trust`, or by the system's roots.
///
/// # Errors
/// [`MapError`], naming the file or URL.
pub async fn load_map(source: &str, trust: Option<&Trust>) -> Result<DerpMap, MapError> {
    let json = load_map_json(source, trust).await?;
    let content = |e| MapError::Content { origin: source.to_owned(), source: e };
    let map = DerpMap::from_json(&json).map_err(content)?;
    map.validate().map_err(content)?;
    Ok(map)
}

/// As [`load_map`], but gives the text whatever it is.
///
/// # Errors
/// [`MapError`], naming the file or URL.
pub async fn load_map_json(source: &str, trust: Option<&Trust>) -> Result<Vec<u8>, MapError> {
    if source.contains("://") { fetch(source, trust).await } else { read_file(PathBuf::from(source)).await }
}

async fn read_file(path: PathBuf) -> Result<Vec<u8>, MapError> {
    let mut json = Vec::new();
    let read = async {
        // One byte more than allowed is enough to see that it is too long.
        let limit = DERP_MAP_LEN_MAX as u64 + 1;
        tokio::fs::File::open(&path).await?.take(limit).read_to_end(&mut json).await
    };
    match read.await {
        Ok(_) => Ok(json),
        Err(source) => Err(MapError::File { path, source }),
    }
}

async fn fetch(url: &str, trust: Option<&Trust>) -> Result<Vec<u8>, MapError> {
    let (endpoint, path) = parse_url(url).ok_or_else(|| MapError::Url(url.to_owned()))?;
    let failed = |source| MapError::Connect { url: url.to_owned(), source: Box::new(source) };
    let exchange = async {
        let connect = async {
            let reached = Route::default().reach(&endpoint).await?;
            Transport::new(reached.socket, &endpoint, trust).await
        };
        let (mut transport, _) = connect.await.map_err(failed)?;
        let answer = |why: String| MapError::Answer { url: url.to_owned(), why };
        match http::get(&mut transport, &endpoint.host_header(), &path, DERP_MAP_LEN_MAX).await {
            Ok((200, body)) => Ok(body.into()),
            Ok((status, _)) => Err(answer(format!("HTTP status {status}"))),
            Err(e) => Err(answer(e.to_string())),
        }
    };
    let late = || failed(ConnectError::Timeout { limit: MAP_TIMEOUT, phase: Phase::Dial });
    timeout(MAP_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(late()))
}

/// The server and the path of an `http` or `https` URL.
fn parse_url(url: &str) -> Option<(Endpoint, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let (plain, default_port) = match scheme {
        "http" => (true, 80),
        "https" => (false, 443),
        _ => return None,
    };
    let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let endpoint =
        if has_port { Endpoint::new(authority) } else { Endpoint::new(&format!("{authority}:{default_port}")) }.ok()?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some((if plain { endpoint.plain() } else { endpoint }, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_server_scheme_and_path() {
        let cases = [
            ("http://127.0.0.1:8080/derpmap", Some(("127.0.0.1", 8080, true, "/derpmap"))),
            ("https://relay.example.com", Some(("relay.example.com", 443, false, "/"))),
            ("https://[::1]/map?x=1", Some(("::1", 443, false, "/map?x=1"))),
            ("http://[::1]:81?x", Some(("::1", 81, true, "/?x"))),
            ("ftp://a/b", None),
            ("https://", None),
            ("https://a:b/c", None),
        ];
        for (url, expected) in cases {
            let parsed = parse_url(url);
            let parts = parsed.as_ref().map(|(e, path)| (e.host_name.as_str(), e.port, e.plain, path.as_str()));
            assert_eq!(parts, expected, "{url}");
        }
    }

    #[tokio::test]
    async fn errors_name_the_file_and_the_field() {
        let error = load_map("/nonexistent/map.json", None).await.expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/map.json"), "{error}");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("map.json");
        std::fs::write(&path, r#"{"Regions":{"1":{"RegionID":2,"RegionCode":"a","RegionName":"A","Nodes":[]}}}"#).expect("write");
        let error = load_map(path.to_str().expect("UTF-8 path"), None).await.expect_err("ids differ");
        assert!(error.to_string().contains("map.json") && error.to_string().contains("RegionID"), "{error}");
    }
}
