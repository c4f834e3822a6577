//! The operator's side of the DERP map: how it is made, and what a change of that edits.

use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_rpc::v1;
use causeway_rpc::v1::change_request::Change;

use super::build::{build, without_balancer};
use super::settings;
use crate::admin::Admin;
use crate::error::AdminError;
use crate::fleet::change::command;
use crate::raft::fleet_state::FleetState;

impl Admin {
    /// How the DERP map is made.
    #[must_use]
    pub fn derp_map_settings(&self) -> v1::DerpMapSettings {
        self.fleet.consensus.machine().read(|state| state.fleet.derp_map.settings.clone()).unwrap_or_default()
    }

    /// Replaces how the DERP map is made, unless `dry_run`; tells what that edits, as this node sees the fleet.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] naming the field; [`AdminError::Unavailable`] names the voters if this node is none.
    pub async fn set_derp_map(
        &self,
        new: v1::DerpMapSettings,
        dry_run: bool,
    ) -> Result<v1::SetDerpMapSettingsResponse, AdminError> {
        settings::check(&new).map_err(AdminError::Invalid)?;
        let change = Change::DerpMap(new);
        let before = self.fleet.consensus.machine().read(|state| state.fleet.clone());
        let mut after = before.clone();
        after.apply(command(change.clone()), |_| false);
        if let Some(region) = without_balancer(&after.derp_map, &after.nodes).first() {
            let problem = "is missing: a balanced region is listed by its balancer's host_name";
            return Err(AdminError::Invalid(format!("regions.{region}.balancer: {problem}")));
        }
        let answer = tell(&before, &after)?;
        if !dry_run {
            self.fleet.change(change).await?;
        }
        Ok(answer)
    }
}

/// The map that comes of a change, and what differs from the one of before.
fn tell(before: &FleetState, after: &FleetState) -> Result<v1::SetDerpMapSettingsResponse, AdminError> {
    let map = |state: &FleetState| build(&state.derp_map, &state.nodes);
    let (old, new) = (map(before).unwrap_or_default(), map(after));
    let new = new.ok_or_else(|| AdminError::Unavailable("the fleet has no node that a map could list".to_owned()))?;
    new.validate().map_err(|error| AdminError::Invalid(format!("these settings make a map that clients cannot use: {error}")))?;
    let ids =
        |of: &DerpMap, wanted: &dyn Fn(&RegionId) -> bool| of.regions.keys().filter(|id| wanted(id)).map(|id| id.0).collect();
    let retired = |id: &RegionId| after.derp_map.retired.contains_key(id);
    let edited = |id: &RegionId| !retired(id) && old.regions.get(id).is_some_and(|region| new.regions.get(id) != Some(region));
    Ok(v1::SetDerpMapSettingsResponse {
        edited_regions: ids(&new, &edited),
        added_regions: ids(&new, &|id| !old.regions.contains_key(id)),
        retired_regions: ids(&new, &retired),
        json: String::from_utf8_lossy(&new.to_json()).into_owned(),
    })
}
