//! Is it JSON, are the fields known, are their values of the right type? Judged on the text's own tree, because reading a map forgets what it
//! does not know and which of two equal names came first.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Findings;
use crate::json::same_field;

/// A JSON value as written: with the order and the repetitions of names.
enum Json {
    Null,
    Bool,
    Integer(i128),
    Float,
    Text,
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Integer(number.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Float)
    }

    fn visit_str<E>(self, _: &str) -> Result<Json, E> {
        Ok(Json::Text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Integer,
    Number,
    Text,
    Object(Fields),
    List(Fields),
    /// An object whose names are region ids.
    ByRegion(&'static Self),
}

pub(super) type Fields = &'static [(&'static str, Kind)];

pub(super) const MAP: Fields = &[
    ("HomeParams", Kind::Object(&[("RegionScore", Kind::ByRegion(&Kind::Number))])),
    ("Regions", Kind::ByRegion(&Kind::Object(REGION))),
    ("omitDefaultRegions", Kind::Bool),
];

const REGION: Fields = &[
    ("RegionID", Kind::Integer),
    ("RegionCode", Kind::Text),
    ("RegionName", Kind::Text),
    ("Latitude", Kind::Number),
    ("Longitude", Kind::Number),
    ("Avoid", Kind::Bool),
    ("NoMeasureNoHome", Kind::Bool),
    ("Nodes", Kind::List(NODE)),
];

const NODE: Fields = &[
    ("Name", Kind::Text),
    ("RegionID", Kind::Integer),
    ("HostName", Kind::Text),
    ("CertName", Kind::Text),
    ("IPv4", Kind::Text),
    ("IPv6", Kind::Text),
    ("STUNPort", Kind::Integer),
    ("STUNOnly", Kind::Bool),
    ("DERPPort", Kind::Integer),
    ("InsecureForTests", Kind::Bool),
    ("STUNTestIP", Kind::Text),
    ("CanPort80", Kind::Bool),
];

/// The names of all fields, of maps, regions and nodes alike.
pub(super) fn all_fields() -> impl Iterator<Item = &'static str> {
    [MAP, REGION, NODE].into_iter().flatten().map(|(field, _)| *field)
}

/// Judges the text; whether a map can be read from it.
pub(super) fn check(json: &[u8], findings: &mut Findings) -> bool {
    let tree: Json = match serde_json::from_slice(json) {
        Ok(tree) => tree,
        Err(error) => {
            let (problem, advice) = explain(json, &error);
            findings.error("", problem, advice);
            return false;
        }
    };
    let Json::Object(entries) = &tree else {
        findings.error("", format!("is {}", name(&tree)), "a JSON object with `Regions`");
        return false;
    };
    if entries.iter().any(|(name, _)| same_field(name, "derpMap")) {
        findings.error("", "is a whole Tailscale policy file", "give the value of its `derpMap` alone");
        return false;
    }
    let before = findings.0.len();
    check_object(entries, MAP, "", findings);
    !findings.0[before..].iter().any(|finding| finding.level == super::Level::Error)
}

/// A text that is no JSON is often something close to it.
fn explain(json: &[u8], error: &serde_json::Error) -> (String, &'static str) {
    let text = String::from_utf8_lossy(json);
    let mut lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty());
    let first = lines.clone().next().unwrap_or_default();
    if first.is_empty() {
        return ("is empty".to_owned(), "a JSON object with `Regions`");
    }
    if super::is_yaml(json) {
        return (
            "is YAML, as Headscale's `derp.paths` takes it".to_owned(),
            "check the JSON; Headscale takes that by `derp.urls`",
        );
    }
    if lines.any(|line| line.starts_with("//") || line.starts_with("/*")) {
        return (format!("is not JSON: {error}"), "comments and trailing commas stand in policy files only: leave them out");
    }
    (format!("is not JSON: {error}"), "mend it there")
}

fn name(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool => "a truth value",
        Json::Integer(_) | Json::Float => "a number",
        Json::Text => "a text",
        Json::List(_) => "a list",
        Json::Object(_) => "an object",
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn check_object(entries: &[(String, Json)], fields: Fields, path: &str, findings: &mut Findings) {
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in entries {
        let Some((field, kind)) = fields.iter().find(|(field, _)| same_field(name, field)) else {
            let names: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
            findings.warning(
                join(path, name),
                "is no field of a DERP map: clients ignore it",
                format!("there are {}", names.join(", ")),
            );
            continue;
        };
        if seen.contains(field) {
            findings.warning(join(path, name), "stands there twice: the last one counts", "leave one out");
        } else if name != field {
            let problem = format!("is written otherwise than `{field}`: Go reads it all the same, other readers do not");
            findings.note(join(path, name), problem, format!("`{field}`"));
        }
        seen.push(field);
        check_value(value, *kind, &join(path, field), findings);
    }
}

fn check_value(value: &Json, kind: Kind, path: &str, findings: &mut Findings) {
    let expected = match (kind, value) {
        // Leaves the field as if it were not there.
        (_, Json::Null)
        | (Kind::Bool, Json::Bool)
        | (Kind::Number, Json::Integer(_) | Json::Float)
        | (Kind::Text, Json::Text) => return,
        (Kind::Integer, Json::Integer(number)) => {
            is_in_range(*number, path, findings);
            return;
        }
        (Kind::Object(fields), Json::Object(entries)) => return check_object(entries, fields, path, findings),
        (Kind::List(fields), Json::List(values)) => {
            for (index, value) in values.iter().enumerate() {
                let path = format!("{path}[{index}]");
                match value {
                    Json::Null => findings.error(path, "is null: stock clients crash on it", "a node, or nothing at all"),
                    value => check_value(value, Kind::Object(fields), &path, findings),
                }
            }
            return;
        }
        (Kind::ByRegion(kind), Json::Object(entries)) => return check_by_region(entries, *kind, path, findings),
        (Kind::Bool, _) => "true or false",
        (Kind::Integer, _) => "a whole number, without quotes and without a fraction",
        (Kind::Number, _) => "a number, without quotes",
        (Kind::Text, _) => "a text in quotes",
        (Kind::Object(_) | Kind::ByRegion(_), _) => "an object",
        (Kind::List(_), _) => "a list",
    };
    findings.error(path, format!("is {}: clients refuse the whole map", name(value)), expected);
}

/// Ids are judged where the map is; here, what no reader can hold.
pub(super) fn is_in_range(number: i128, path: &str, findings: &mut Findings) -> bool {
    let id = path.ends_with("RegionID") || path.ends_with("regionid");
    let fits = if id { (0..=i128::from(i64::MAX)).contains(&number) } else { i32::try_from(number).is_ok() };
    if !fits {
        let advice = if id { "900 to 999" } else { "a port" };
        findings.error(path, format!("{number} is out of range"), advice);
    }
    fits
}

fn check_by_region(entries: &[(String, Json)], kind: Kind, path: &str, findings: &mut Findings) {
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in entries {
        let path = format!("{path}[{key}]");
        if !key.parse::<i64>().is_ok_and(|id| id > 0 && id.to_string() == *key) {
            findings.error(
                path,
                "is no region id: clients refuse the whole map",
                "a decimal number in quotes, such as `\"900\"`",
            );
            continue;
        }
        if seen.contains(&key.as_str()) {
            findings.warning(path.clone(), "stands there twice: the last one counts", "leave one out");
        }
        seen.push(key);
        if matches!(value, Json::Null) {
            findings.error(path, "is null", "a region, or nothing at all");
            continue;
        }
        check_value(value, kind, &path, findings);
    }
}
