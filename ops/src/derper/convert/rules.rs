//! What clients may do and are shown: admission, limits, pages, and what a node does not let one choose.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::flags::{FLAGS, VARIABLES, parse_duration, parse_float};
use super::{Fate, Work, list, read};

/// A node reads fewer bytes per second from nobody, and takes no smaller burst (`derp.md` section 9).
const CLIENT_RATE_MIN: u64 = 8_192;
const CLIENT_BURST_MIN: u64 = 65_568;

impl Work<'_> {
    pub(super) fn admission(&mut self) {
        let mut sources = Vec::new();
        if self.flags.is_on("verify-clients") {
            sources.push("tailscaled".to_owned());
            if let Some(socket) = self.flags.given("socket").filter(|socket| !socket.is_empty()) {
                self.set("admission.tailscaled_socket", socket);
            }
        }
        self.kept("verify-clients", "admission.sources");
        self.kept("socket", "admission.tailscaled_socket");
        if let Some(url) = self.flags.given("verify-client-url").filter(|url| !url.is_empty()) {
            sources.push("verify_url".to_owned());
            let open = self.flags.is_on("verify-client-url-fail-open");
            self.set("admission.verify_url", url);
            self.set("admission.fail_open", open);
            if url.starts_with("http://") && !is_this_machine(url) {
                self.set("admission.verify_url_plain", true);
                self.differs("-verify-client-url", "is asked without TLS (admission.verify_url_plain): use https if you can");
            }
            if open && self.flags.given("verify-client-url-fail-open").is_none() {
                self.differs(
                    "-verify-client-url-fail-open",
                    "is derper's default: whoever comes while the URL is unreachable may relay; admission.fail_open = false is safer",
                );
            }
        }
        self.kept("verify-client-url", "admission.verify_url");
        self.kept("verify-client-url-fail-open", "admission.fail_open");
        if !sources.is_empty() {
            self.set("admission.sources", sources);
        }
    }

    pub(super) fn limits(&mut self) -> Result<(), String> {
        // Like a derper, which knows no limit per key.
        self.set("limits.key_rate_bits_per_second", 0);
        self.accept_limit();
        let Some(path) = self.flags.given("rate-config").filter(|path| !path.is_empty()).map(PathBuf::from) else {
            return Ok(());
        };
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct RateConfig {
            #[serde(rename = "PerClientRateLimitBytesPerSec")]
            rate: u64,
            #[serde(rename = "PerClientRateBurstBytes")]
            burst: u64,
        }
        let config: RateConfig = serde_json::from_str(&read(&path, "-rate-config")?)
            .map_err(|error| format!("-rate-config: {}: {error}", path.display()))?;
        if config.rate > 0 {
            self.set("limits.client_rate_bytes_per_second", toml_int(config.rate.max(CLIENT_RATE_MIN)));
            self.set("limits.client_burst_bytes", toml_int(config.burst.max(CLIENT_BURST_MIN)));
            if config.rate < CLIENT_RATE_MIN {
                self.differs("-rate-config", "the rate is raised to 8192 bytes per second, the least a node takes");
            }
        }
        self.kept("rate-config", "limits.client_rate_bytes_per_second, limits.client_burst_bytes");
        Ok(())
    }

    fn accept_limit(&mut self) {
        let limit = parse_float(self.flags.text("accept-connection-limit")).filter(|limit| limit.is_finite());
        let Some(limit) = limit else {
            self.unused("accept-connection-limit", "no limit: the node's own defaults hold ([limits])");
            self.unused("accept-connection-burst", "nothing without -accept-connection-limit, in derper neither");
            return;
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[expect(clippy::cast_possible_truncation, reason = "clamped to the range of the field")]
        let per_core = (limit / cores as f64).ceil().clamp(1.0, 1e6) as i64;
        self.set("limits.accepts_per_second_per_core", per_core);
        self.kept("accept-connection-limit", &format!("limits.accepts_per_second_per_core, on this machine's {cores} cores"));
        if self.flags.given("accept-connection-burst").is_some() {
            self.differs("-accept-connection-burst", "a burst is twice the rate; a source has limits.accept_burst_per_source");
        }
    }

    pub(super) fn pages(&mut self) -> Result<(), String> {
        let home = self.flags.text("home").to_owned();
        if !(home.is_empty() || home == "blank" || home.starts_with("http://") || home.starts_with("https://")) {
            return Err(format!("-home: {home:?} is neither empty, nor \"blank\", nor an http:// or https:// URL"));
        }
        if !home.is_empty() {
            self.set("http.home", home);
        }
        self.kept("home", "http.home");
        for (name, field) in [
            ("bootstrap-dns-names", "bootstrap_dns.names"),
            ("unpublished-bootstrap-dns-names", "bootstrap_dns.unpublished_names"),
        ] {
            let names = list(self.flags.text(name));
            if !names.is_empty() {
                self.set(field, names);
            }
            self.kept(name, field);
        }
        Ok(())
    }

    /// What a node does not let one choose.
    pub(super) fn timeouts(&mut self) {
        for (name, ours) in [
            (
                "tcp-keepalive-time",
                "kernel keep-alives are not set: every client gets a DERP keep-alive within 65 s, which finds dead ones",
            ),
            ("tcp-user-timeout", "fixed at 15 s"),
            ("tcp-write-timeout", "fixed at 2 s for clients"),
        ] {
            let default = FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default);
            if parse_duration(self.flags.text(name)) == parse_duration(default) {
                self.unused(name, "derper's default, which a node has too");
            } else {
                self.differs(&format!("-{name}"), ours);
            }
        }
    }

    pub(super) fn variables(&mut self) {
        for name in VARIABLES {
            let Some(value) = (self.environment)(name).filter(|value| !value.is_empty()) else { continue };
            match name {
                "TS_ALLOW_DEBUG_IP" | "TS_DEBUG_TRUSTED_CIDRS" => {
                    self.append("http.debug_networks", list(&value));
                    self.note(name.to_owned(), Fate::Kept, "http.debug_networks");
                }
                "TS_DEBUG_KEY_PATH" => match read(Path::new(&value), name) {
                    Ok(text) => {
                        let path = self.secret("debug.key", text);
                        self.set("http.debug_key_file", path);
                        self.note(name.to_owned(), Fate::Kept, "http.debug_key_file");
                    }
                    Err(why) => self.differs(name, &format!("{why}: no debug key is set")),
                },
                "DERP_DEBUG_LOGS" => {
                    self.set("log.filter", "info,causeway_node::ingress::derp=trace");
                    self.note(name.to_owned(), Fate::Kept, "log.filter");
                }
                "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH" => {
                    self.differs(
                        name,
                        "a client's queue holds 32 packets of each kind; limits.client_queue_bytes bounds their memory",
                    );
                }
                "TS_DERP_DISABLE_RTT_STATS" => self.differs(name, "not needed: one question every 10 s reads all of them"),
                "TS_DEBUG_VERBOSE_DROPS" => {
                    self.differs(
                        name,
                        "no log of single drops: /debug/varz counts them by reason, `causeway trace` shows a route",
                    );
                }
                "DERP_PROBER_DEBUG_LOGS" => self.differs(name, "no log of probers alone: use log.filter"),
                _ => self.differs(name, "derper reads it with -dev only: use -mesh-psk-file"),
            }
        }
    }
}

fn toml_int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn is_this_machine(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
