//! A map in YAML, as Headscale's `derp.paths` takes it: with the names of Go's fields in lower case, matched exactly. Names that are not among
//! them are ignored without a word; a value that does not fit refuses the file.

mod tree;

use serde_json::Value;

use super::shape::{Fields, Kind, MAP, all_fields, is_in_range};
use super::{DerpMap, Finding, Findings, Level, check_map};
use crate::json::same_field;
use crate::limits::DERP_MAP_LEN_MAX;
use tree::{Scalar, Yaml};

/// Judges a DERP map in YAML as Headscale reads files; errors first, else in the map's order. Paths are spelt as in the file.
#[must_use]
pub fn lint_yaml(yaml: &[u8]) -> Vec<Finding> {
    let mut findings = Findings::default();
    if let Some(map) = read(yaml, &mut findings) {
        let mut judged = Findings::default();
        check_map(&map, &mut judged);
        findings.0.extend(judged.0.into_iter().map(in_lower_case));
    }
    findings.0.sort_by_key(|finding| finding.level);
    findings.0
}

/// Whether a text that shall be a map is YAML rather than JSON, which begins with a brace.
#[must_use]
pub fn is_yaml(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let first = text.lines().map(str::trim_start).find(|line| !line.is_empty()).unwrap_or_default();
    !first.starts_with(['{', '[']) && (first.starts_with(['#', '-', '%']) || first.contains(':'))
}

/// The map, unless Headscale would refuse the file or there is nothing further to judge.
fn read(yaml: &[u8], findings: &mut Findings) -> Option<DerpMap> {
    if yaml.len() > DERP_MAP_LEN_MAX {
        findings.error("", format!("has {} bytes", yaml.len()), format!("keep it below {DERP_MAP_LEN_MAX}"));
        return None;
    }
    let Ok(text) = std::str::from_utf8(yaml) else {
        findings.error("", "is not UTF-8", "save it as UTF-8");
        return None;
    };
    let file = match tree::read(text) {
        Ok(file) => file,
        Err(problem) => {
            findings.error("", problem, "mend it there");
            return None;
        }
    };
    if file.has_more {
        findings.warning("", "has several documents: Headscale reads the first", "one file for each, all named in `derp.paths`");
    }
    let entries = match &file.document {
        Some(Yaml::Map(entries)) => entries,
        other => {
            let what = other.as_ref().filter(|value| !value.is_null()).map_or("empty", Yaml::name);
            findings.error("", format!("is {what}"), "a YAML mapping with `regions`");
            return None;
        }
    };
    let mut reader = Reader { findings, removes: false };
    let mut map = reader.object(entries, MAP, "");
    let removes = reader.removes;
    if findings.0.iter().any(|finding| finding.level == Level::Error) {
        return None;
    }
    if map.remove("omitDefaultRegions").is_some() {
        let advice = "leave it out; `urls: []` in Headscale's configuration is what keeps the vendor's regions away";
        findings.note("omitdefaultregions", "Headscale drops it", advice);
    }
    let map = DerpMap::from_json(Value::Object(map).to_string().as_bytes());
    match map {
        Ok(map) if map.regions.is_empty() && removes => None,
        // Headscale tells clients nothing of the vendor's regions but what it was told itself.
        Ok(map) => Some(DerpMap { omit_default_regions: true, ..map }),
        Err(error) => {
            findings.error("", error.to_string(), "mend what it names");
            None
        }
    }
}

/// A finding about the map, spelt as its YAML is.
fn in_lower_case(finding: Finding) -> Finding {
    let names = |text: &str| {
        let parts = text.split('`').map(|part| match all_fields().find(|field| *field == part) {
            Some(field) => field.to_ascii_lowercase(),
            None => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("`")
    };
    let (path, problem, advice) = (finding.path.to_ascii_lowercase(), names(&finding.problem), names(&finding.advice));
    Finding { path, problem, advice, ..finding }
}

/// Turns the tree into the JSON of a map, as far as it fits.
struct Reader<'f> {
    findings: &'f mut Findings,
    /// A region is null, which takes it out of what Headscale read before.
    removes: bool,
}

impl Reader<'_> {
    fn object(&mut self, entries: &[(Yaml, Yaml)], fields: Fields, path: &str) -> serde_json::Map<String, Value> {
        let mut object = serde_json::Map::new();
        for (name, value) in entries {
            let Yaml::Scalar(_, name) = name else {
                self.refused(path, name, "names as keys");
                continue;
            };
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let known = fields.iter().find(|(field, _)| same_field(name, field));
            let Some((field, kind)) = known.filter(|(field, _)| field.to_ascii_lowercase() == *name) else {
                self.ignored(&at, known.map(|(field, _)| *field), fields);
                continue;
            };
            if object.contains_key(*field) {
                self.findings.error(at, "stands there twice: Headscale refuses the file", "leave one out");
                continue;
            }
            if let Some(value) = self.value(value, *kind, &at) {
                object.insert((*field).to_owned(), value);
            }
        }
        object
    }

    fn ignored(&mut self, at: &str, meant: Option<&str>, fields: Fields) {
        let (problem, advice) = match meant {
            Some(field) => ("is not in lower case: Headscale ignores it", format!("`{}`", field.to_ascii_lowercase())),
            None => {
                let names: Vec<String> = fields.iter().map(|(field, _)| field.to_ascii_lowercase()).collect();
                ("is no field of a DERP map: Headscale ignores it", format!("there are {}", names.join(", ")))
            }
        };
        self.findings.warning(at, problem, advice);
    }

    /// `None`: the field is as if it were not there.
    fn value(&mut self, value: &Yaml, kind: Kind, path: &str) -> Option<Value> {
        if value.is_null() {
            return None;
        }
        let expected = match (kind, value) {
            (Kind::Bool, Yaml::Scalar(Scalar::Bool(value), _)) => return Some((*value).into()),
            (Kind::Bool, Yaml::Scalar(Scalar::Text, text)) if truth(text).is_some() => return truth(text).map(Value::from),
            (Kind::Integer, Yaml::Scalar(Scalar::Integer(number), _)) => return self.integer(*number, path),
            (Kind::Integer, Yaml::Scalar(Scalar::Float(number), _)) if number.is_finite() => {
                return self.integer_of_float(*number, path);
            }
            #[expect(clippy::cast_precision_loss, reason = "as Go does it")]
            (Kind::Number, Yaml::Scalar(Scalar::Integer(number), _)) => return Some((*number as f64).into()),
            (Kind::Number, Yaml::Scalar(Scalar::Float(number), _)) if number.is_finite() => return Some((*number).into()),
            (Kind::Number, Yaml::Scalar(Scalar::Float(_), text)) => {
                self.findings.error(path, format!("{text} is nothing that Headscale can tell clients"), "a finite number");
                return None;
            }
            (Kind::Text, Yaml::Scalar(_, text)) => return Some(text.clone().into()),
            (Kind::Object(fields), Yaml::Map(entries)) => return Some(self.object(entries, fields, path).into()),
            (Kind::List(fields), Yaml::List(values)) => return Some(self.list(values, fields, path).into()),
            (Kind::ByRegion(kind), Yaml::Map(entries)) => return Some(self.by_region(entries, *kind, path).into()),
            (Kind::Bool, _) => "true or false",
            (Kind::Integer, _) => "a whole number, without quotes",
            (Kind::Number, _) => "a number, without quotes",
            (Kind::Text, _) => "a text",
            (Kind::Object(_) | Kind::ByRegion(_), _) => "a mapping",
            (Kind::List(_), _) => "a list",
        };
        self.refused(path, value, expected);
        None
    }

    fn list(&mut self, values: &[Yaml], fields: Fields, path: &str) -> Vec<Value> {
        let mut list = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if value.is_null() {
                self.findings.error(path, "is null: stock clients crash on it", "a node, or nothing at all");
            } else {
                list.extend(self.value(value, Kind::Object(fields), &path));
            }
        }
        list
    }

    fn by_region(&mut self, entries: &[(Yaml, Yaml)], kind: Kind, path: &str) -> serde_json::Map<String, Value> {
        let mut regions = serde_json::Map::new();
        for (key, value) in entries {
            let id = match key {
                Yaml::Scalar(Scalar::Integer(id), _) => Some(*id),
                #[expect(clippy::cast_possible_truncation, reason = "as Go does it; the range is checked below")]
                Yaml::Scalar(Scalar::Float(id), _) if id.is_finite() => Some(*id as i128),
                _ => None,
            };
            let Some(id) = id.filter(|id| (1..=i128::from(i64::MAX)).contains(id)) else {
                let text = if let Yaml::Scalar(_, text) = key { text } else { key.name() };
                let problem = "is no region id: Headscale refuses the file, or clients the map";
                self.findings.error(format!("{path}[{text}]"), problem, "a number above 0, without quotes, such as 900");
                continue;
            };
            let at = format!("{path}[{id}]");
            if regions.contains_key(&id.to_string()) {
                self.findings.error(at, "stands there twice: Headscale refuses the file", "leave one out");
            } else if value.is_null() {
                self.removes = true;
                let problem = "is null: Headscale takes the region out of the maps that it read before";
                self.findings.note(at, problem, "nothing to mend if that is meant");
            } else if let Some(value) = self.value(value, kind, &at) {
                regions.insert(id.to_string(), value);
            }
        }
        regions
    }

    #[expect(clippy::cast_possible_truncation, reason = "as Go does it; the range is checked after")]
    fn integer_of_float(&mut self, number: f64, path: &str) -> Option<Value> {
        if number.fract() != 0.0 {
            self.findings.warning(path, "has a fraction, which Headscale cuts off", "a whole number");
        }
        self.integer(number as i128, path)
    }

    fn integer(&mut self, number: i128, path: &str) -> Option<Value> {
        is_in_range(number, &path.to_ascii_lowercase(), self.findings)
            .then(|| i64::try_from(number).map(Value::from).ok())
            .flatten()
    }

    fn refused(&mut self, path: &str, value: &Yaml, expected: &str) {
        self.findings.error(path, format!("is {}: Headscale refuses the file", value.name()), expected);
    }
}

/// What older YAML has for truth values, and Go still takes where one is wanted.
fn truth(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
