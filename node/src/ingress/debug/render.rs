//! Writes the stock metrics as Prometheus text and as Go's expvar JSON.

use std::fmt::Write;

use serde_json::{Map, Number, Value as Json};

use super::stock::{Metric, Value};

/// Prometheus text 0.0.4.
pub(super) fn varz(metrics: &[Metric]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    for metric in metrics {
        let name = metric.name();
        if let Some(kind) = metric.kind() {
            line(&mut out, format_args!("# TYPE {name} {kind}"));
        }
        match &metric.value {
            Value::One(value) => line(&mut out, format_args!("{name} {value}")),
            // Of groups a stock server leaves it out too.
            Value::Text(_) if !metric.group.is_empty() => {}
            Value::Text(text) => line(&mut out, format_args!("{name}{{version=\"{text}\",binary=\"causewayd\"}} 1")),
            Value::Labelled(label, values) => {
                for (word, value) in values {
                    line(&mut out, format_args!("{name}{{{label}=\"{word}\"}} {value}"));
                }
            }
            Value::Drops(values) => {
                for ((reason, kind), value) in values {
                    line(&mut out, format_args!("{name}{{reason=\"{reason}\",kind=\"{kind}\"}} {value}"));
                }
            }
            Value::Histogram { buckets, sum, count } => {
                for (bound, value) in buckets {
                    line(&mut out, format_args!("{name}_bucket{{le=\"{bound}\"}} {value}"));
                }
                line(&mut out, format_args!("{name}_sum {sum}\n{name}_count {count}"));
            }
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(out, "{text}");
}

/// JSON as of Go's expvar package: groups are objects.
pub(super) fn vars(metrics: &[Metric]) -> String {
    let mut top = Map::new();
    for metric in metrics.iter().filter(|metric| metric.in_vars()) {
        let at = match metric.group {
            "" => &mut top,
            group => match top.entry(group).or_insert_with(|| Json::Object(Map::new())) {
                Json::Object(group) => group,
                _ => continue,
            },
        };
        at.insert(metric.key.to_owned(), json(&metric.value));
    }
    let mut text = Json::Object(top).to_string();
    text.push('\n');
    text
}

fn json(value: &Value) -> Json {
    match value {
        Value::One(value) => number(*value),
        Value::Text(text) => Json::String(text.clone()),
        Value::Labelled(_, values) => values.iter().map(|(word, value)| ((*word).to_owned(), number(*value))).collect(),
        Value::Drops(values) => {
            let mut reasons = Map::new();
            for ((reason, kind), value) in values {
                if let Json::Object(kinds) = reasons.entry(*reason).or_insert_with(|| Json::Object(Map::new())) {
                    kinds.insert((*kind).to_owned(), number(*value));
                }
            }
            Json::Object(reasons)
        }
        Value::Histogram { buckets, sum, count } => {
            let ends = [("sum".to_owned(), number(*sum)), ("count".to_owned(), number(*count))];
            buckets.iter().map(|(bound, value)| (bound.clone(), number(*value))).chain(ends).collect()
        }
    }
}

/// Whole numbers without a point, as stock writes them.
#[expect(clippy::cast_possible_truncation, reason = "whole and within the range of i64")]
fn number(value: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        return Json::from(value as i64);
    }
    Number::from_f64(value).map_or(Json::Null, Json::Number)
}
