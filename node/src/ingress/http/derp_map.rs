//! The DERP map as a JSON document, made again only when the map changes.

use std::sync::Arc;

use bytes::Bytes;
use causeway_proto::derpmap::DerpMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// A document and its entity tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// JSON.
    pub body: Bytes,
    /// Strong entity tag, quotes included.
    pub etag: String,
}

/// The newest map's document.
#[derive(Debug)]
pub struct DerpMapDocument {
    maps: watch::Receiver<Option<Arc<DerpMap>>>,
    /// The map it was made from, so that a change is seen.
    cached: Mutex<Option<(Arc<DerpMap>, Document)>>,
}

impl DerpMapDocument {
    /// Follows `maps`.
    #[must_use]
    pub const fn new(maps: watch::Receiver<Option<Arc<DerpMap>>>) -> Self {
        Self { maps, cached: Mutex::new(None) }
    }

    /// The document of the newest map, if there is a map yet.
    ///
    /// # Errors
    /// The map holds a number that JSON cannot.
    pub fn current(&self) -> Result<Option<Document>, serde_json::Error> {
        let Some(map) = self.maps.borrow().clone() else { return Ok(None) };
        let mut cached = self.cached.lock();
        match &*cached {
            Some((of, document)) if Arc::ptr_eq(of, &map) => Ok(Some(document.clone())),
            _ => {
                let body = Bytes::from(serde_json::to_vec(&*map)?);
                let digest = Sha256::digest(&body);
                let etag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&digest[..16]));
                let document = Document { body, etag };
                *cached = Some((map, document.clone()));
                Ok(Some(document))
            }
        }
    }
}
