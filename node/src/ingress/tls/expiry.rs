//! What a certificate says of itself, and the alarm before it expires.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::ingress::metrics::IngressMetrics;

/// The last days in which expiry is an alarm.
const ALARM_DAYS: [u64; 3] = [21, 7, 2];

/// A certificate that was made for less than this is not of the kind that people renew.
const ALARM_LIFETIME_MIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// From when to when a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

pub(super) fn validity(leaf: &CertificateDer<'_>) -> Option<Validity> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?));
    let validity = leaf.validity();
    Some(Validity { not_before: at(validity.not_before.timestamp())?, not_after: at(validity.not_after.timestamp())? })
}

/// The names and addresses that it is for; none if it cannot be read.
pub(super) fn names(leaf: &CertificateDer<'_>) -> BTreeSet<String> {
    let Ok((_, leaf)) = x509_parser::parse_x509_certificate(leaf) else { return BTreeSet::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return BTreeSet::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => address(octets).map(|address| address.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// Says once per threshold that the certificate expires.
#[derive(Debug, Default)]
pub(super) struct ExpiryAlarm {
    said_days: Option<u64>,
    of: Option<Validity>,
}

impl ExpiryAlarm {
    pub(super) fn look(&mut self, validity: &Validity, now: SystemTime, metrics: &IngressMetrics) {
        let since_epoch = validity.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        metrics.certificate_expires(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
        if self.of != Some(*validity) {
            *self = Self { said_days: None, of: Some(*validity) };
        }
        if validity.not_after.duration_since(validity.not_before).unwrap_or_default() < ALARM_LIFETIME_MIN {
            return;
        }
        let left_days = validity.not_after.duration_since(now).unwrap_or_default().as_secs() / (24 * 3600);
        let threshold = ALARM_DAYS.into_iter().filter(|days| left_days < *days).min();
        if threshold.is_some() && threshold != self.said_days {
            self.said_days = threshold;
            tracing::warn!(left_days, "the DERP certificate expires soon: it must be renewed");
        }
    }
}
