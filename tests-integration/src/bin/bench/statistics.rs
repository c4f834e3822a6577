//! Medians and percentiles of small samples.

/// The value at `percent` of the sorted sample (nearest rank).
pub(crate) fn percentile(sample: &mut [f64], percent: f64) -> f64 {
    sample.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sample.len() as f64).ceil() as usize;
    sample.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle of the sample.
pub(crate) fn median(sample: &mut [f64]) -> f64 {
    percentile(sample, 50.0)
}
