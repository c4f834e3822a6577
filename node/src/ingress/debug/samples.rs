//! The node's own metrics, read back from their text: the one interface that every area's counters share.

use std::collections::HashMap;

/// Samples by metric name.
#[derive(Debug, Default)]
pub(super) struct Samples {
    by_name: HashMap<String, Vec<Sample>>,
}

#[derive(Debug)]
struct Sample {
    labels: Vec<(String, String)>,
    value: f64,
}

impl Samples {
    /// Reads what [`crate::telemetry::exporter`] wrote.
    pub(super) fn parse(text: &str) -> Self {
        let mut by_name: HashMap<String, Vec<Sample>> = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            by_name.entry(name.to_owned()).or_default().push(Sample { labels: labels_of(labels), value });
        }
        Self { by_name }
    }

    /// Sum of a metric's samples that carry all of `labels`; 0 without any.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.by_name.get(name).into_iter().flatten();
        let carries = |sample: &&Sample| labels.iter().all(|(key, value)| sample.label(key) == Some(*value));
        // The sum of nothing is -0.0.
        samples.filter(carries).map(|sample| sample.value).sum::<f64>() + 0.0
    }

    /// The buckets of a histogram, cumulative: upper bound as written, count.
    pub(super) fn buckets(&self, name: &str) -> Vec<(String, f64)> {
        let samples = self.by_name.get(&format!("{name}_bucket")).into_iter().flatten();
        samples.filter_map(|sample| Some((sample.label("le")?.trim_end_matches(".0").to_owned(), sample.value))).collect()
    }
}

impl Sample {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// Our label values are words: none holds a quote or a comma.
fn labels_of(text: &str) -> Vec<(String, String)> {
    let pairs = text.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_labels_and_buckets_are_read_back() {
        let samples = Samples::parse(
            "# TYPE x counter\nx_total{reason=\"a\",kind=\"disco\"} 3\nx_total{reason=\"a\",kind=\"other\"} 4\nx_total{reason=\"b\",kind=\"other\"} 5\n\
             up 1.5\nh_sum 7.0\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 3\n# EOF\n",
        );
        assert_eq!(samples.sum("x_total", &[]), 12.0);
        assert_eq!(samples.sum("x_total", &[("reason", "a")]), 7.0);
        assert_eq!(samples.sum("x_total", &[("reason", "a"), ("kind", "other")]), 4.0);
        assert_eq!(samples.sum("up", &[]), 1.5);
        assert_eq!(samples.sum("down", &[]), 0.0);
        assert_eq!(samples.buckets("h"), [("1".to_owned(), 2.0), ("+Inf".to_owned(), 3.0)]);
    }
}
