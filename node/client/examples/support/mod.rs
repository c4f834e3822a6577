//! Command line of the examples: where to connect and whom to trust.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use causeway_client::{ClientBuilder, Endpoint, Trust, load_map};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePrivate;

/// What is left of the command line.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) trust: Option<Trust>,
    map: Option<String>,
    region: Option<RegionId>,
    address: Option<String>,
    plain: bool,
}

pub(crate) const USAGE: &str = "\
  --map URL-or-FILE    DERP map: connect to the nearest region, or
    --region ID        to this one
  --address HOST:PORT  connect to this server instead
    --plain            without TLS, on loopback
  --ca FILE            trust these PEM certificates instead of the system's
  --insecure           trust anybody (tests only)";

impl Args {
    /// Parses the process's arguments.
    pub(crate) fn parse() -> Result<Self> {
        let mut args = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--map" => args.map = Some(value()?),
                "--region" => args.region = Some(RegionId(value()?.parse().context("--region is a number")?)),
                "--address" => args.address = Some(value()?),
                "--plain" => args.plain = true,
                "--ca" => args.trust = Some(Trust::ca_file(value()?)?),
                "--insecure" => args.trust = Some(Trust::insecure_for_tests()?),
                _ => bail!("unknown argument {word}\n{USAGE}"),
            }
        }
        Ok(args)
    }

    /// The map of `--map`.
    pub(crate) async fn load_map(&self) -> Result<Arc<DerpMap>> {
        let source = self.map.as_deref().with_context(|| format!("--map is missing\n{USAGE}"))?;
        Ok(Arc::new(load_map(source, self.trust.as_ref()).await?))
    }

    /// A client with a fresh key that connects where the command line says.
    #[allow(dead_code, reason = "not every example connects")]
    pub(crate) async fn builder(&self) -> Result<ClientBuilder> {
        let mut builder = ClientBuilder::new(NodePrivate::generate());
        if let Some(trust) = &self.trust {
            builder = builder.trust(trust.clone());
        }
        if let Some(address) = &self.address {
            let endpoint = Endpoint::new(address)?;
            return Ok(builder.endpoint(if self.plain { endpoint.plain() } else { endpoint }));
        }
        let map = self.load_map().await?;
        Ok(match self.region {
            Some(region) => builder.region(map, region),
            None => builder.nearest(map),
        })
    }
}
