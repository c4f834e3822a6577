//! Checks what an operator sets of the DERP map. Every message names the field as the settings file has it.

use causeway_proto::derpmap::REGION_ID_MAX;
use causeway_rpc::v1;

/// Regions that settings can name.
const REGIONS_MAX: usize = 1024;
/// Nodes of each other region that are cross-listed at most.
const CROSS_LISTED_MAX: u32 = 4;
/// Longest grace, in seconds.
const GRACE_MAX_S: u32 = 86_400;
/// Grace unless it is set, in seconds.
pub(crate) const GRACE_DEFAULT_S: u32 = 600;
/// Longest code, name or host name.
const TEXT_LEN_MAX: usize = 253;

/// Checks settings on their own. What the map made of them looks like is the linter's to judge.
///
/// # Errors
/// A sentence naming the field and what would be right.
pub(crate) fn check(settings: &v1::DerpMapSettings) -> Result<(), String> {
    let mode = v1::DerpMapMode::try_from(settings.mode).map_err(|_| "mode: not known to this release".to_owned())?;
    if settings.cross_listed_per_region > CROSS_LISTED_MAX {
        return Err(format!("cross_listed_per_region: {} is not 1 to {CROSS_LISTED_MAX}", settings.cross_listed_per_region));
    }
    if settings.grace_s > GRACE_MAX_S {
        return Err(format!("grace_seconds: {} is not 1 to {GRACE_MAX_S}", settings.grace_s));
    }
    match (&settings.single_region, mode == v1::DerpMapMode::SingleRegion) {
        (Some(region), true) => check_single_region(region)?,
        (None, true) => return Err("single_region: is missing: the mode `single-region` needs its id and code".to_owned()),
        (Some(_), false) => return Err("single_region: belongs to the mode `single-region` only".to_owned()),
        (None, false) => {}
    }
    if settings.regions.len() > REGIONS_MAX {
        return Err(format!("regions: {} entries, at most {REGIONS_MAX} are taken", settings.regions.len()));
    }
    if !settings.regions.is_sorted_by(|a, b| a.id < b.id) {
        return Err("regions: must be in ascending order of their ids, each once".to_owned());
    }
    settings.regions.iter().try_for_each(|region| check_region(region, mode))
}

fn check_single_region(region: &v1::Region) -> Result<(), String> {
    if region.id == 0 || region.id > REGION_ID_MAX {
        return Err(format!("single_region.id: {} is not 1 to 2^53 - 1 (900 to 999 are for self-hosted regions)", region.id));
    }
    if region.code.is_empty() || region.code.len() > TEXT_LEN_MAX || region.name.len() > TEXT_LEN_MAX {
        return Err("single_region: needs a short code, such as `all`, and a name of at most 253 bytes".to_owned());
    }
    for (field, degrees, most) in [("latitude", region.latitude, 90.0), ("longitude", region.longitude, 180.0)] {
        if degrees.is_some_and(|degrees| !(-most..=most).contains(&degrees)) {
            return Err(format!("single_region.{field}: wanted degrees from -{most} to {most}"));
        }
    }
    Ok(())
}

fn check_region(region: &v1::DerpRegionSettings, fleet: v1::DerpMapMode) -> Result<(), String> {
    let at = |field: &str, problem: &str| Err(format!("regions.{}.{field}: {problem}", region.id));
    if region.id == 0 || region.id > REGION_ID_MAX {
        return at("id", "must be 1 to 2^53 - 1");
    }
    if region.score.is_some_and(|score| !(score.is_finite() && score > 0.0)) {
        return at("score", "must be above 0: below 1 favours the region, above 1 penalises it");
    }
    let mode = region.mode.map(v1::DerpMapMode::try_from);
    match mode {
        Some(Err(_)) => return at("mode", "not known to this release"),
        Some(Ok(v1::DerpMapMode::SingleRegion)) => return at("mode", "`single-region` is a mode of the whole fleet"),
        Some(Ok(_)) if fleet == v1::DerpMapMode::SingleRegion => {
            return at("mode", "cannot differ from the fleet's while that is `single-region`");
        }
        Some(Ok(v1::DerpMapMode::Balanced)) if region.balancer.is_none() => {
            return at("balancer", "is missing: a balanced region is listed by its balancer's host_name");
        }
        Some(Ok(_)) | None => {}
    }
    match &region.balancer {
        Some(balancer) if balancer.host_name.is_empty() => {
            at("balancer.host_name", "is missing: the name that every node's certificate must have")
        }
        Some(balancer)
            if [&balancer.host_name, &balancer.ipv4, &balancer.ipv6, &balancer.cert_name]
                .iter()
                .any(|text| text.len() > TEXT_LEN_MAX) =>
        {
            at("balancer", "a text in it is longer than 253 bytes")
        }
        Some(balancer) if balancer.derp_port > u32::from(u16::MAX) => at("balancer.derp_port", "is no port"),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balanced(host_name: &str) -> Option<v1::RelayEndpoint> {
        Some(v1::RelayEndpoint { host_name: host_name.to_owned(), ..Default::default() })
    }

    #[test]
    fn each_wrong_field_is_named() {
        use v1::DerpMapMode::{Balanced, SingleRegion};
        let region = |id| v1::DerpRegionSettings { id, ..Default::default() };
        let with = |regions: Vec<v1::DerpRegionSettings>| v1::DerpMapSettings { regions, ..Default::default() };
        let single = v1::Region { id: 900, code: "all".to_owned(), ..Default::default() };
        let of_single = |single_region, regions| v1::DerpMapSettings {
            mode: SingleRegion.into(),
            single_region,
            regions,
            ..Default::default()
        };
        let mode = |mode: v1::DerpMapMode| v1::DerpRegionSettings { mode: Some(mode.into()), ..region(1) };
        let cases = [
            (v1::DerpMapSettings { mode: 9, ..Default::default() }, "mode"),
            (v1::DerpMapSettings { cross_listed_per_region: 5, ..Default::default() }, "cross_listed_per_region"),
            (v1::DerpMapSettings { grace_s: 86_401, ..Default::default() }, "grace_seconds"),
            (of_single(None, vec![]), "single_region"),
            (of_single(Some(v1::Region { id: 0, ..single.clone() }), vec![]), "single_region.id"),
            (of_single(Some(v1::Region { code: String::new(), ..single.clone() }), vec![]), "single_region"),
            (of_single(Some(v1::Region { latitude: Some(f64::NAN), ..single.clone() }), vec![]), "single_region.latitude"),
            (of_single(Some(single.clone()), vec![mode(Balanced)]), "regions.1.mode"),
            (v1::DerpMapSettings { single_region: Some(single.clone()), ..Default::default() }, "single_region"),
            (with(vec![region(2), region(1)]), "regions"),
            (with(vec![region(2), region(2)]), "regions"),
            (with(vec![region(0)]), "regions.0.id"),
            (with(vec![v1::DerpRegionSettings { score: Some(0.0), ..region(1) }]), "regions.1.score"),
            (with(vec![v1::DerpRegionSettings { score: Some(f64::INFINITY), ..region(1) }]), "regions.1.score"),
            (with(vec![mode(SingleRegion)]), "regions.1.mode"),
            (with(vec![v1::DerpRegionSettings { mode: Some(7), ..region(1) }]), "regions.1.mode"),
            (with(vec![mode(Balanced)]), "regions.1.balancer"),
            (with(vec![v1::DerpRegionSettings { balancer: balanced(""), ..region(1) }]), "regions.1.balancer.host_name"),
        ];
        for (settings, field) in cases {
            let error = check(&settings).expect_err(field);
            assert_eq!(error.split(": ").next(), Some(field), "{error}");
        }
        let good = v1::DerpRegionSettings { balancer: balanced("r.example"), score: Some(0.5), ..mode(Balanced) };
        assert_eq!(check(&with(vec![good, region(2)])), Ok(()));
        assert_eq!(check(&of_single(Some(single), vec![region(1)])), Ok(()));
        assert_eq!(check(&v1::DerpMapSettings::default()), Ok(()));
    }
}
