//! The command line of a stock derper: every flag with its default, parsed as Go's flag package does.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `-flag` alone is true.
    Bool,
    /// Any text.
    Text,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// A time, such as `1m30s`.
    Duration,
}

/// A flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its value if it is not given; empty also where the default depends on the machine.
    pub default: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str) -> Flag {
    Flag { name, kind, default }
}

/// All flags, as of derper 1.102.
pub const FLAGS: [Flag; 34] = [
    flag("a", Kind::Text, ":443"),
    flag("accept-connection-burst", Kind::Int, "9223372036854775807"),
    flag("accept-connection-limit", Kind::Float, "+Inf"),
    flag("ace", Kind::Bool, "false"),
    flag("acme-eab-key", Kind::Text, ""),
    flag("acme-eab-kid", Kind::Text, ""),
    flag("acme-email", Kind::Text, ""),
    flag("acme-ip-certs", Kind::Bool, "false"),
    flag("bootstrap-dns-names", Kind::Text, ""),
    flag("c", Kind::Text, ""),
    flag("certdir", Kind::Text, ""),
    flag("certmode", Kind::Text, "letsencrypt"),
    flag("derp", Kind::Bool, "true"),
    flag("dev", Kind::Bool, "false"),
    flag("home", Kind::Text, ""),
    flag("hostname", Kind::Text, "derp.tailscale.com"),
    flag("http-port", Kind::Int, "80"),
    flag("mesh-psk-file", Kind::Text, ""),
    flag("mesh-with", Kind::Text, ""),
    flag("rate-config", Kind::Text, ""),
    flag("secrets-cache-dir", Kind::Text, ""),
    flag("secrets-path-prefix", Kind::Text, "prod/derp"),
    flag("secrets-url", Kind::Text, ""),
    flag("socket", Kind::Text, ""),
    flag("stun", Kind::Bool, "true"),
    flag("stun-port", Kind::Int, "3478"),
    flag("tcp-keepalive-time", Kind::Duration, "10m0s"),
    flag("tcp-user-timeout", Kind::Duration, "15s"),
    flag("tcp-write-timeout", Kind::Duration, "2s"),
    flag("unpublished-bootstrap-dns-names", Kind::Text, ""),
    flag("verify-client-url", Kind::Text, ""),
    flag("verify-client-url-fail-open", Kind::Bool, "true"),
    flag("verify-clients", Kind::Bool, "false"),
    flag("version", Kind::Bool, "false"),
];

/// The environment variables a derper reads.
pub const VARIABLES: [&str; 9] = [
    "TAILSCALE_DERPER_MESH_KEY",
    "TS_ALLOW_DEBUG_IP",
    "TS_DEBUG_TRUSTED_CIDRS",
    "TS_DEBUG_KEY_PATH",
    "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH",
    "TS_DERP_DISABLE_RTT_STATS",
    "TS_DEBUG_VERBOSE_DROPS",
    "DERP_DEBUG_LOGS",
    "DERP_PROBER_DEBUG_LOGS",
];

/// A command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    given: BTreeMap<&'static str, String>,
}

impl Flags {
    /// Parses the arguments after the program's name: `-flag`, `--flag`, `-flag=value`, `-flag value`; the last one wins.
    ///
    /// # Errors
    /// A sentence naming the argument that derper would refuse.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut given = BTreeMap::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let named = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(named) = named.filter(|named| !named.is_empty() && !named.starts_with(['-', '='])) else {
                return Err(format!("{argument:?} is no flag: derper takes flags only, such as -hostname derp.example.com"));
            };
            let (name, value) = named.split_once('=').map_or((named, None), |(name, value)| (name, Some(value.to_owned())));
            let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
                return Err(format!("-{name}: derper has no such flag"));
            };
            let value = match (value, flag.kind) {
                (Some(value), _) => value,
                (None, Kind::Bool) => "true".to_owned(),
                (None, _) => arguments.next().cloned().ok_or_else(|| format!("-{name}: its value is missing"))?,
            };
            if !fits(flag.kind, &value) {
                return Err(format!("-{name}: {value:?} is not {}", wanted(flag.kind)));
            }
            given.insert(flag.name, value);
        }
        Ok(Self { given })
    }

    /// The value that was given, if any.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str)
    }

    /// The value in force.
    ///
    /// # Panics
    /// There is no such flag.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        let default = || FLAGS.iter().find(|flag| flag.name == name).expect("a flag of the table").default;
        self.given(name).unwrap_or_else(default)
    }

    /// Whether a flag that is true or false is true.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        parse_bool(self.text(name)).unwrap_or(false)
    }

    /// The names of those given, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.given.keys().copied()
    }
}

fn fits(kind: Kind, value: &str) -> bool {
    match kind {
        Kind::Text => true,
        Kind::Bool => parse_bool(value).is_some(),
        Kind::Int => value.parse::<i64>().is_ok(),
        Kind::Float => parse_float(value).is_some(),
        Kind::Duration => parse_duration(value).is_some(),
    }
}

const fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Bool => "true or false (with -flag=false, not -flag false)",
        Kind::Int => "a whole number",
        Kind::Float => "a number",
        Kind::Duration => "a time, such as 15s or 10m0s",
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A number, or `Inf` with or without a sign.
#[must_use]
pub fn parse_float(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// A time as Go writes it: numbers with units (`1h2m3.5s`), or `0`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(unit_at);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds_per_unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * seconds_per_unit;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Flags, String> {
        Flags::parse(&arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_taken_in_every_form_of_go_and_the_last_one_wins() {
        let flags =
            parse(&["-a", ":8443", "--hostname=relay.test", "-stun=false", "--verify-clients", "-a=:9443"]).expect("valid");
        assert_eq!((flags.text("a"), flags.text("hostname")), (":9443", "relay.test"));
        assert!(!flags.is_on("stun") && flags.is_on("verify-clients") && flags.is_on("derp") && !flags.is_on("dev"));
        assert_eq!((flags.given("http-port"), flags.text("http-port")), (None, "80"));
        assert_eq!(flags.names().collect::<Vec<_>>(), ["a", "hostname", "stun", "verify-clients"]);
    }

    #[test]
    fn what_derper_refuses_is_refused_and_named() {
        for (arguments, named) in [
            (&["-no-such"][..], "-no-such"),
            (&["relay.test"], "relay.test"),
            (&["-stun", "false"], "false"),
            (&["-stun=maybe"], "maybe"),
            (&["-http-port", "many"], "many"),
            (&["-hostname"], "missing"),
            (&["-tcp-user-timeout=15"], "15s"),
            (&["---a"], "---a"),
            (&["-=x"], "-=x"),
        ] {
            let error = parse(arguments).expect_err("refused");
            assert!(error.contains(named), "{arguments:?}: {error}");
        }
    }

    /// The rows of a table of the page for people: what is mapped, and to what.
    fn rows(heading: &str) -> Vec<(&'static str, &'static str)> {
        const PAGE: &str = include_str!("../../../docs/operations/from-derper.md");
        let table = PAGE.split(heading).nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the page has the table");
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")).collect()
    }

    #[test]
    fn the_page_has_a_row_for_every_flag_and_variable_and_names_only_fields_that_exist() {
        const EXAMPLE: &str = include_str!("../../../node/config.example.toml");
        let (flags, variables) = (rows("\n## Flags\n"), rows("\n## Environment variables\n"));
        let names: Vec<&str> = flags.iter().filter_map(|(name, _)| name.strip_prefix('-')).collect();
        assert_eq!(names, FLAGS.map(|flag| flag.name), "the flags, in order");
        assert_eq!(variables.iter().map(|(name, _)| *name).collect::<Vec<_>>(), VARIABLES, "the variables, in order");
        let mut fields = 0;
        for (name, said) in flags.iter().chain(&variables) {
            let quoted = said.split('`').skip(1).step_by(2);
            let paths = quoted.filter_map(|word| word.split([' ', '=']).next()).filter_map(|word| word.split_once('.'));
            for (section, field) in paths {
                let body = EXAMPLE.split(&format!("\n[{section}]\n")).nth(1).and_then(|rest| rest.split("\n[").next());
                let is_there = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{field} = "));
                let is_section = EXAMPLE.contains(&format!("[{section}.{field}]"));
                assert!(is_section || body.is_some_and(|body| body.lines().any(is_there)), "{name}: no field {section}.{field}");
                fields += 1;
            }
        }
        assert!(fields > 25, "{fields}");
    }

    #[test]
    fn times_and_numbers_of_go() {
        for (text, ms) in [("10m0s", 600_000), ("15s", 15_000), ("1.5s", 1_500), ("1h2m3s", 3_723_000), ("250ms", 250), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "5", "s", "5 s", "5d", "-5s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        assert_eq!(parse_float("+Inf"), Some(f64::INFINITY));
    }
}
