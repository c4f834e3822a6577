//! One scrape of a node's `/metrics` (Prometheus text format), and the packet accounting read from it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A scrape is never larger than this.
const SCRAPE_BYTES_MAX: u64 = 4 << 20;

/// All samples of one scrape.
#[derive(Debug, Clone)]
pub struct Scrape {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Reads `http://HOST:PORT/path`.
    ///
    /// # Errors
    /// The node does not answer, or not with 200 and Prometheus text.
    pub async fn read(url: &str) -> anyhow::Result<Self> {
        Self::parse(&http_get(url).await?)
    }

    /// Parses Prometheus text.
    ///
    /// # Errors
    /// A line is neither a comment nor a sample.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples =
            lines.map(|line| parse_sample(line).with_context(|| format!("metrics line `{line}`"))).collect::<Result<_, _>>()?;
        Ok(Self { samples })
    }

    /// The sum of all samples of `name` whose labels include `labels`; `None` if there is no such sample.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matching = self.samples.iter().filter(|sample| {
            sample.name == name && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
        });
        matching.map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// Names of all samples.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.iter().map(|sample| sample.name.as_str())
    }

    /// What this node did with the packets it accepted.
    #[must_use]
    pub fn accounting(&self) -> Accounting {
        let sum = |name| self.sum(name, &[]).unwrap_or(0.0);
        Accounting {
            accepted: sum("causeway_packets_accepted_total"),
            delivered: sum("causeway_packets_delivered_total"),
            dropped: sum("causeway_packets_dropped_total"),
            queued: sum("causeway_packets_queued"),
        }
    }
}

/// A node's sums over all packets; at rest `accepted = delivered + dropped + queued`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accounting {
    /// From clients, links and stock mesh peers.
    pub accepted: f64,
    /// To clients, links and stock mesh peers.
    pub delivered: f64,
    /// By any reason.
    pub dropped: f64,
    /// Waiting in lanes.
    pub queued: f64,
}

impl Accounting {
    /// Whether every packet accepted is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        (self.accepted - self.delivered - self.dropped - self.queued).abs() < 0.5
    }
}

impl fmt::Display for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, delivered, dropped, queued } = self;
        write!(f, "accepted {accepted} = delivered {delivered} + dropped {dropped} + queued {queued}")
    }
}

fn parse_sample(line: &str) -> anyhow::Result<Sample> {
    let (series, value) = match line.rsplit_once('}') {
        Some((series, rest)) => (series, rest.trim()),
        None => line.split_once(' ').context("no value")?,
    };
    // A time stamp may follow the value.
    let value = value.split(' ').next().context("no value")?.parse().context("value")?;
    let (name, label_text) = series.split_once('{').unwrap_or((series, ""));
    Ok(Sample { name: name.to_owned(), labels: parse_labels(label_text)?, value })
}

fn parse_labels(mut text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text.split_once("=\"").context("label without value")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next().context("label value without end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next().context("escape without character")?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, character) => value.push(character),
            }
        };
        labels.insert(key.to_owned(), value);
        text = rest[end + 1..].trim_start_matches(',');
    }
    Ok(labels)
}

/// Fetches `http://HOST:PORT/path` and gives the body of a 200 answer.
///
/// # Errors
/// Nobody answers, or with another status.
pub async fn http_get(url: &str) -> anyhow::Result<String> {
    let (status, body) = http_status(url).await?;
    if status != 200 {
        bail!("{url} answered {status}: {body}");
    }
    Ok(body)
}

/// Fetches `http://HOST:PORT/path`: status and body.
///
/// # Errors
/// Nobody answers, or not with HTTP.
pub async fn http_status(url: &str) -> anyhow::Result<(u16, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("`{url}` is no http:// URL"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(authority).await.with_context(|| format!("connect {url}"))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(SCRAPE_BYTES_MAX).read_to_end(&mut answer).await.with_context(|| format!("read {url}"))?;
    let answer = String::from_utf8(answer).context("the answer is not UTF-8")?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{url} did not answer with HTTP"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse().context("status")?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_is_read() {
        let text = "# HELP x y\n# TYPE x counter\nx_total{reason=\"a\",lane=\"data\"} 3\nx_total{reason=\"b \\\"}{,\"} 4 1700000000\nup 1\n# EOF\n";
        let scrape = Scrape::parse(text).expect("valid");
        assert_eq!(scrape.sum("x_total", &[]), Some(7.0));
        assert_eq!(scrape.sum("x_total", &[("lane", "data")]), Some(3.0));
        assert_eq!(scrape.sum("x_total", &[("reason", "b \"}{,")]), Some(4.0));
        assert_eq!(scrape.sum("up", &[]), Some(1.0));
        assert_eq!(scrape.sum("down", &[]), None);
        assert!(Scrape::parse("x{a=\"b} 1").is_err());
        assert!(Scrape::parse("x").is_err());
    }

    #[test]
    fn an_unaccounted_packet_shows() {
        let mut accounting = Accounting { accepted: 5.0, delivered: 3.0, dropped: 1.0, queued: 1.0 };
        assert!(accounting.balances());
        accounting.accepted += 1.0;
        assert!(!accounting.balances());
    }
}
