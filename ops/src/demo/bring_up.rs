//! The demo's fleet: brought up by Terraform where it is installed, else by the code of `causeway dev`.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::Context;

use super::terraform::{self, Terraform};
use crate::cli::{DemoArgs, DemoBy, DevRunArgs};
use crate::failure::Failure;
use crate::fleet::dev::DevFleet;
use crate::fleet::layout::{FileLock, FleetDir, NodeDir, remove_dir};
use crate::fleet::process::Identity;
use crate::fleet::progress::Progress;
use crate::fleet::ready::{FleetReady, VERSION};
use crate::fleet::{leash, local, node, sweeper};

/// Regions and nodes of each.
const SHAPE: (u32, u32) = (3, 2);

/// The demo's fleet; end it with [`DemoFleet::down`].
#[derive(Debug)]
pub enum DemoFleet {
    /// Made by the code of `causeway dev`.
    Dev(DevFleet),
    /// Made by Terraform.
    Terraform(TerraformFleet),
}

impl DemoFleet {
    /// Decides how, and lays out the files; starts nothing yet.
    ///
    /// # Errors
    /// If Terraform was asked for and is not there, or a file cannot be made.
    pub fn prepare(args: &DemoArgs, progress: Progress) -> anyhow::Result<Self> {
        let source = args.terraform_dir.clone().or_else(terraform::source);
        match (args.by, terraform::program(), source) {
            (DemoBy::Terraform, None, _) => {
                Err(Failure::NotFound("--by terraform: neither terraform nor tofu is on the PATH".to_owned()).into())
            }
            (DemoBy::Terraform, _, None) => Err(Failure::NotFound(
                "--by terraform: no terraform/fleets/local here or above; name it with --terraform-dir".to_owned(),
            )
            .into()),
            (DemoBy::Auto | DemoBy::Terraform, Some(program), Some(source)) => {
                Ok(Self::Terraform(TerraformFleet::prepare(program, &source, progress)?))
            }
            (DemoBy::Auto, None, _) => {
                progress.say("neither terraform nor tofu is on the PATH: the fleet is brought up without");
                Self::dev(progress)
            }
            (DemoBy::Auto | DemoBy::Dev, ..) => Self::dev(progress),
        }
    }

    fn dev(progress: Progress) -> anyhow::Result<Self> {
        let args = DevRunArgs {
            regions: SHAPE.0,
            nodes_per_region: SHAPE.1,
            dir: None,
            ready_file: None,
            set: Vec::new(),
            derp_mesh_key_file: None,
            bind: vec![[127, 0, 0, 1].into()],
        };
        Ok(Self::Dev(DevFleet::lay_out(&args, progress)?))
    }

    /// Starts everything and waits until the fleet is healthy.
    ///
    /// # Errors
    /// Naming what does not start.
    pub async fn bring_up(&mut self) -> anyhow::Result<FleetReady> {
        match self {
            Self::Dev(fleet) => fleet.bring_up().await,
            Self::Terraform(fleet) => fleet.bring_up().await,
        }
    }

    /// Kills a node as a crash of its machine would: also nobody there starts it again.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub async fn crash(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Dev(fleet) => node::kill(&fleet.dir().node(name)?).await.map(drop),
            Self::Terraform(fleet) => fleet.crash(&fleet.dir.node(name)?).await,
        }
    }

    /// Ends everything and removes every file.
    ///
    /// # Errors
    /// If a process cannot be ended or a file not removed.
    pub async fn down(self) -> anyhow::Result<()> {
        match self {
            Self::Dev(fleet) => fleet.down().await,
            Self::Terraform(fleet) => fleet.down().await,
        }
    }
}

/// A fleet made by `terraform apply` in a temporary directory.
#[derive(Debug)]
pub struct TerraformFleet {
    /// Holds the working copy, the leash and the fleet.
    base: PathBuf,
    dir: FleetDir,
    terraform: Terraform,
    sweeper: Identity,
    progress: Progress,
    /// Last, so that it is freed last.
    _leash: FileLock,
}

impl TerraformFleet {
    fn prepare(program: PathBuf, source: &std::path::Path, progress: Progress) -> anyhow::Result<Self> {
        node::causewayd()?;
        // Kept by name, because it is removed by whoever outlives the other: this process or the sweeper.
        let base =
            tempfile::Builder::new().prefix("causeway-demo-").tempdir().context("no temporary directory can be made")?.keep();
        let dir = FleetDir::new(&base.join("fleet"))?;
        let leash_file = base.join("leash");
        let leash = leash::hold(&leash_file)?;
        let sweeper = sweeper::start(&leash_file, &dir, Some(&base))?;
        let terraform = Terraform::prepare(program, source, &base, dir.path(), &leash_file, &free_network()?)?;
        Ok(Self { base, dir, terraform, sweeper, progress, _leash: leash })
    }

    async fn bring_up(&mut self) -> anyhow::Result<FleetReady> {
        self.terraform.apply(self.progress).await?;
        let status = local::status(&self.dir).await?;
        self.progress.say(&format!("healthy: {} nodes, leader {}", status.nodes.len(), status.leader));
        Ok(FleetReady {
            version: VERSION,
            derpmap_url: status.derpmap_url,
            ca_file: status.ca_file,
            insecure: false,
            mesh_key_file: status.mesh_key_file,
            derp_mesh_key_file: PathBuf::new(),
            operator_socket: status.operator_socket,
            nodes: status.nodes.into_iter().map(|node| node.node).collect(),
        })
    }

    async fn crash(&self, node: &NodeDir) -> anyhow::Result<()> {
        // The supervisor first, or it would start the node again.
        for process in [node.supervisor(), node.process()] {
            if let Some(process) = Identity::read(&process) {
                process.kill().await?;
            }
        }
        Ok(())
    }

    async fn down(mut self) -> anyhow::Result<()> {
        self.terraform.interrupt().await?;
        let destroyed = self.terraform.destroy(self.progress).await;
        // Whatever Terraform did: nothing stays.
        local::clean(&self.dir).await?;
        self.sweeper.kill().await?;
        remove_dir(&self.base)?;
        destroyed
    }
}

/// A loopback network nobody listens on, so that two demos do not meet.
fn free_network() -> anyhow::Result<String> {
    /// A node-to-node port of the fleet on the first address of its first region.
    const PROBED_PORT: u16 = 17443;
    let start = std::process::id() % 128;
    (0..128)
        .map(|step| 64 + (start + step) % 128)
        .find(|octet| TcpListener::bind(format!("127.{octet}.1.11:{PROBED_PORT}")).is_ok())
        .map(|octet| format!("127.{octet}.0.0/16"))
        .context("every loopback network from 127.64 to 127.191 is in use; end other demos, or use --by dev")
}
