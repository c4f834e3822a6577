//! Which DERP map this node serves: the newest that Raft has applied; until Raft answers after a start, the one served last, from disk.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::NodeId;
use causeway_proto::limits::DERP_MAP_LEN_MAX;
use causeway_rpc::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::build::build;
use super::state::{MapState, Nodes};
use crate::data_dir::write_durably;
use crate::raft::state_machine::FleetView;

/// Room for what stands around the map in its file.
const FILE_HEAD_LEN_MAX: usize = 256;

/// The file of the last map.
#[derive(Debug, Clone)]
pub(crate) struct MapFile {
    path: PathBuf,
}

/// Its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// Index of the Raft log at which the map was made.
    applied_index: u64,
    map: DerpMap,
}

impl MapFile {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The map of before; a file that cannot be used counts as none, because Raft soon has a map.
    fn read(&self) -> Option<Kept> {
        let unusable = |reason: String| tracing::warn!(file = %self.path.display(), reason, "the last DERP map cannot be used");
        let mut json = Vec::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take((DERP_MAP_LEN_MAX + FILE_HEAD_LEN_MAX) as u64).read_to_end(&mut json));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                unusable(error.to_string());
                return None;
            }
            Ok(_) => {}
        }
        let kept: Result<Kept, _> = serde_json::from_slice(&json);
        let kept = kept.map_err(|error| error.to_string());
        match kept.and_then(|kept| kept.map.validate().map(|()| kept).map_err(|error| error.to_string())) {
            Ok(kept) if kept.map.regions.is_empty() => None,
            Ok(kept) => Some(kept),
            Err(reason) => {
                unusable(reason);
                None
            }
        }
    }

    fn write(&self, kept: &Kept) -> io::Result<()> {
        write_durably(&self.path, &serde_json::to_vec(kept)?)
    }
}

/// The map as this node serves it; the only writer of it.
#[derive(Debug)]
pub(crate) struct ServedMap {
    own: NodeId,
    file: MapFile,
    /// What Raft applied before is history that is being replayed: showing it would be a needless edit.
    newest_index: u64,
    served: watch::Sender<Option<Arc<DerpMap>>>,
}

impl ServedMap {
    /// Starts with the map on disk. A standalone node, which is all there is, lists itself if there is none.
    pub(crate) fn new(file: MapFile, own: &v1::NodeRecord, standalone: bool) -> Self {
        let id = NodeId(own.node_id);
        let kept = file.read();
        let newest_index = kept.as_ref().map_or(0, |kept| kept.applied_index);
        let alone = || build(&MapState::default(), &Nodes::from([(id, own.clone())])).filter(|_| standalone);
        let map = kept.map(|kept| kept.map).or_else(alone).map(Arc::new);
        Self { own: id, file, newest_index, served: watch::Sender::new(map) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<DerpMap>>> {
        self.served.subscribe()
    }

    /// Follows what Raft applies.
    pub(crate) async fn follow(mut self, mut states: watch::Receiver<Arc<FleetView>>, cancel: CancellationToken) {
        states.mark_changed();
        while let Some(Ok(())) = cancel.run_until_cancelled(states.changed()).await {
            let state = Arc::clone(&states.borrow_and_update());
            let Some(kept) = self.take(&state) else { continue };
            let file = self.file.clone();
            // Only after a crash is an older file met, and then it serves until Raft answers.
            match tokio::task::spawn_blocking(move || file.write(&kept)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, file = %self.file.path.display(), "the DERP map cannot be kept on disk"),
                Err(error) => tracing::error!(%error, "keeping the DERP map on disk failed"),
            }
        }
    }

    /// Serves the map of a newer state; what is to be kept, if it differs from what was served.
    fn take(&mut self, state: &FleetView) -> Option<Kept> {
        if state.applied_index < self.newest_index || !state.fleet.nodes.contains_key(&self.own) {
            return None;
        }
        self.newest_index = state.applied_index;
        let map = build(&state.fleet.derp_map, &state.fleet.nodes)?;
        if self.served.borrow().as_deref() == Some(&map) {
            return None;
        }
        self.served.send_replace(Some(Arc::new(map.clone())));
        Some(Kept { applied_index: state.applied_index, map })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::raft::fleet_state::{FleetState, sample_record};

    fn state(applied_index: u64, names: &[&str]) -> FleetView {
        let mut fleet = FleetState::default();
        let nodes = names.iter().map(|name| sample_record(name, 1)).collect();
        fleet.form(&v1::FormFleet { fleet_id: "f".to_owned(), nodes, ..Default::default() });
        FleetView { fleet: Arc::new(fleet), applied_index, ..FleetView::default() }
    }

    fn names(served: &ServedMap) -> Option<Vec<String>> {
        let map = served.served.borrow().clone()?;
        Some(map.regions.values().flat_map(|region| &region.nodes).map(|node| node.name.clone()).collect())
    }

    #[test]
    fn the_last_map_is_served_until_raft_has_caught_up_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = MapFile::new(dir.path().join("derpmap.json"));
        let own = sample_record("a1", 1);
        let mut first = ServedMap::new(file.clone(), &own, false);
        assert_eq!(names(&first), None, "a node in no fleet has no map");
        assert_eq!(first.take(&state(3, &["b1"])), None, "nor has one that its fleet does not know");
        let kept = first.take(&state(7, &["a1", "b1"])).unwrap();
        file.write(&kept).unwrap();

        let mut again = ServedMap::new(file.clone(), &own, false);
        assert_eq!(names(&again).unwrap(), ["a1", "b1"]);
        assert_eq!(again.take(&state(4, &["a1"])), None, "history is not shown");
        assert_eq!(again.take(&state(7, &["a1", "b1"])), None, "the same map is no news");
        assert_eq!(names(&again).unwrap(), ["a1", "b1"]);
        again.take(&state(8, &["a1", "b1", "c1"])).unwrap();
        assert_eq!(names(&again).unwrap(), ["a1", "b1", "c1"]);
    }

    #[test]
    fn a_damaged_file_counts_as_none_and_a_standalone_node_always_has_a_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("derpmap.json");
        let own = sample_record("a1", 1);
        for text in ["", "{}", r#"{"applied_index":1,"map":{"Regions":{"1":{"RegionID":2}}}}"#, r#"{"applied_index":1,"map":{}}"#]
        {
            std::fs::write(&path, text).unwrap();
            let file = MapFile::new(path.clone());
            assert_eq!(names(&ServedMap::new(file.clone(), &own, false)), None, "{text}");
            assert_eq!(names(&ServedMap::new(file, &own, true)).unwrap(), ["a1"], "{text}");
        }
    }
}
