//! What the demo shows, in order.

use std::time::Duration;

use causeway_rpc::v1;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::bring_up::DemoFleet;
use super::guests::{Guest, Guests, arrive};
use crate::cli::KeyArg;
use crate::command::presence::Entry;
use crate::command::routing::Trace;
use crate::connect::{Operator, Target, connect};
use crate::failure::Failure;
use crate::fleet::ready::{FleetNode, FleetReady};
use crate::output::{Output, Table, microseconds};

/// Packets per ordered pair of regions.
const PACKETS: u64 = 20;
/// Packets sent while a node is killed, and the time between two.
const PACKETS_DURING_KILL: u64 = 200;
const PACKET_INTERVAL: Duration = Duration::from_millis(5);
/// How long the fleet may take until every node knows every client.
const KNOWN_WAIT: Duration = Duration::from_secs(5);
/// How long the fleet may take to notice a dead node.
const NOTICED_WAIT: Duration = Duration::from_secs(10);
/// How long a call to a node may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Takes the tour; with `hold` stays at its end until dropped.
///
/// # Errors
/// If the fleet does not do what the demo shows.
pub async fn run(fleet: &DemoFleet, ready: &FleetReady, hold: bool, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut tour = Tour { ready, output };
    let mut guests = tour.connect().await?;
    tour.send_across(&mut guests).await?;
    tour.ask_presence(&guests).await?;
    tour.lose_a_node(fleet, &mut guests).await?;
    tour.say_what_next(hold)?;
    if hold {
        std::future::pending::<()>().await;
    }
    Ok(())
}

struct Tour<'a, 'o> {
    ready: &'a FleetReady,
    output: &'a mut Output<'o>,
}

impl Tour<'_, '_> {
    fn say(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.output.raw(format!("{text}\n").as_bytes())?)
    }

    /// The node a client is connected to.
    fn node_of(&self, guest: &Guest) -> anyhow::Result<&FleetNode> {
        let key = guest.node().map(|key| key.to_untyped_hex()).unwrap_or_default();
        let found = self.ready.nodes.iter().find(|node| node.derp_public_key == key);
        found.ok_or_else(|| anyhow::anyhow!("the client of region {} is at none of the fleet's nodes", guest.region))
    }

    async fn operator_of(&self, guest: &Guest) -> anyhow::Result<Operator> {
        Ok(operator(self.node_of(guest)?).await?)
    }

    async fn connect(&mut self) -> Result<Guests, Failure> {
        let (map, guests) = arrive(&self.ready.derpmap_url, &self.ready.ca_file).await?;
        self.say(&format!("\n1. The DERP map names {} regions; a client connects to each:", map.regions.len()))?;
        let mut table = Table::new(["  REGION", "CLIENT", "AT NODE"]);
        for guest in &guests.all {
            table.row([format!("  {}", guest.region), guest.key.to_text(), self.node_of(guest)?.name.clone()]);
        }
        self.say(&table.to_string())?;
        let began = Instant::now();
        for node in &self.ready.nodes {
            let mut operator = operator(node).await?;
            for guest in &guests.all {
                until_known(&mut operator, guest, node).await?;
            }
        }
        let took = microseconds(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.say(&format!("   Every node knows all of them: asking all {} took {took}.\n", self.ready.nodes.len()))?;
        Ok(guests)
    }

    async fn send_across(&mut self, guests: &mut Guests) -> Result<(), Failure> {
        self.say(&format!("2. {PACKETS} packets from each region to each other one:"))?;
        let mut table = Table::new(["  FROM", "TO", "PATH", "ARRIVED", "MEDIAN", "SLOWEST"]);
        for (from, to) in pairs(guests.all.len()) {
            let mut operator = self.operator_of(&guests.all[from]).await?;
            let (src, dst) = two(&mut guests.all, from, to);
            let trace = Trace::ask(&mut operator, KeyArg(src.key), KeyArg(dst.key)).await?;
            let mut latencies = Vec::new();
            for number in 0..PACKETS {
                latencies.extend(src.send(dst, number).await?);
            }
            latencies.sort();
            let shown = |latency: Option<&Duration>| latency.map(|latency| micros(*latency)).unwrap_or_default();
            table.row([
                format!("  {}", src.region),
                dst.region.clone(),
                trace.path(),
                format!("{} of {PACKETS}", latencies.len()),
                shown(latencies.get(latencies.len() / 2)),
                shown(latencies.last()),
            ]);
            if latencies.len() as u64 != PACKETS {
                self.say(&table.to_string())?;
                let lost = PACKETS - latencies.len() as u64;
                return Err(anyhow::anyhow!("{lost} of {PACKETS} packets from {} to {} were lost", src.region, dst.region).into());
            }
        }
        self.say(&table.to_string())
    }

    async fn ask_presence(&mut self, guests: &Guests) -> Result<(), Failure> {
        let [first, .., last] = guests.all.as_slice() else {
            return Err(anyhow::anyhow!("the DERP map has fewer than two regions").into());
        };
        let node = self.node_of(first)?.clone();
        let mut operator = operator(&node).await?;
        self.say(&format!(
            "3. Who holds the client of region {}? Asked of {}, in region {}:\n   $ causeway --socket {} presence get {}",
            last.region,
            node.name,
            node.region,
            node.operator_socket.display(),
            last.key.to_text()
        ))?;
        let entry = Entry::ask(&mut operator, KeyArg(last.key), false).await?;
        self.say(&indented(&entry.text()))?;
        let counts = operator.count_presence(v1::CountPresenceRequest {}).await?.into_inner();
        self.say(&format!("   {} clients are present in the whole fleet.\n", counts.keys))
    }

    async fn lose_a_node(&mut self, fleet: &DemoFleet, guests: &mut Guests) -> Result<(), Failure> {
        let last = guests.all.len() - 1;
        let victim = self.node_of(&guests.all[last])?.clone();
        self.say(&format!("4. Node {} is killed (SIGKILL), with the client of region {} on it:", victim.name, victim.region))?;
        let before = guests.all[last].node();
        let (others, hit) = guests.all.split_at_mut(last);
        let hit = &mut hit[0];
        let (src, dst) = two(others, 0, 1);
        let killed = async {
            tokio::time::sleep(PACKET_INTERVAL * 20).await;
            let at = Instant::now();
            fleet.crash(&victim.name).await?;
            hit.connected_elsewhere(before).await?;
            anyhow::Ok(at.elapsed())
        };
        let (arrived, back_after) = tokio::join!(stream(src, dst), killed);
        let (arrived, back_after) = (arrived?, back_after?);
        self.say(&format!(
            "   Meanwhile {} -> {}: {arrived} of {PACKETS_DURING_KILL} packets arrived, one every {} ms.",
            guests.all[0].region,
            guests.all[1].region,
            PACKET_INTERVAL.as_millis()
        ))?;
        if arrived != PACKETS_DURING_KILL {
            return Err(anyhow::anyhow!("packets between untouched nodes were lost while {} was killed", victim.name).into());
        }
        let now_at = self.node_of(&guests.all[last])?.name.clone();
        self.say(&format!("   The client of region {} is on {now_at} after {} ms.", victim.region, back_after.as_millis()))?;
        self.reach_again(guests, last).await?;
        self.notice(&victim).await
    }

    /// Shows that the client that moved is reachable from everywhere.
    async fn reach_again(&mut self, guests: &mut Guests, moved: usize) -> Result<(), Failure> {
        for from in 0..moved {
            let mut operator = self.operator_of(&guests.all[from]).await?;
            let node = self.node_of(&guests.all[from])?.clone();
            until_known(&mut operator, &guests.all[moved], &node).await?;
            let (src, dst) = two(&mut guests.all, from, moved);
            // The claim of the dead node is hidden by the first packet that fails, or by its silence: at most a few are lost.
            let began = Instant::now();
            let mut number = 1_000_000;
            let latency = loop {
                if let Some(latency) = src.send(dst, number).await? {
                    break latency;
                }
                number += 1;
                if began.elapsed() > NOTICED_WAIT {
                    return Err(anyhow::anyhow!("{} does not reach the client of {} that moved", src.region, dst.region).into());
                }
            };
            let trace = Trace::ask(&mut operator, KeyArg(src.key), KeyArg(dst.key)).await?;
            let line = format!("   {} -> {}: {} in {}.", src.region, dst.region, trace.path(), micros(latency));
            self.say(&line)?;
        }
        Ok(())
    }

    async fn notice(&mut self, victim: &FleetNode) -> Result<(), Failure> {
        let alive = self.ready.nodes.iter().find(|node| node.region != victim.region).cloned();
        let alive = alive.ok_or_else(|| anyhow::anyhow!("the fleet has one region only"))?;
        let mut operator = operator(&alive).await?;
        let began = Instant::now();
        let status = loop {
            let status = operator.get_cluster_status(v1::GetClusterStatusRequest {}).await?.into_inner();
            if !status.problems.is_empty() || began.elapsed() > NOTICED_WAIT {
                break status;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        self.say(&format!("   $ causeway --socket {} cluster status", alive.operator_socket.display()))?;
        for problem in &status.problems {
            self.say(&format!("   problem: {problem}"))?;
        }
        self.say("")
    }

    fn say_what_next(&mut self, hold: bool) -> Result<(), Failure> {
        let Some(node) = self.ready.nodes.first() else { return Ok(()) };
        let text = format!(
            "DERP map  {}  (trust {})\nTry       export CAUSEWAY_SOCKET={}\n          causeway cluster status\n          causeway node ls\n          \
             causeway presence ls\n          causeway presence watch\n          causeway raft status\n          curl --cacert {} {}",
            self.ready.derpmap_url,
            self.ready.ca_file.display(),
            node.operator_socket.display(),
            self.ready.ca_file.display(),
            self.ready.derpmap_url,
        );
        self.say(&text)?;
        if hold { self.say("\nCtrl-C takes everything down.") } else { Ok(()) }
    }
}

async fn operator(node: &FleetNode) -> Result<Operator, Failure> {
    connect(&Target::Socket(node.operator_socket.clone()), CALL_TIMEOUT).await
}

/// Waits until a node knows a valid place of the client.
async fn until_known(operator: &mut Operator, guest: &Guest, node: &FleetNode) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match Entry::ask(operator, KeyArg(guest.key), false).await {
            Ok(entry) if entry.claims.iter().any(|claim| claim.valid) => return Ok(()),
            Ok(_) | Err(Failure::NotFound(_)) if began.elapsed() < KNOWN_WAIT => {}
            Ok(_) | Err(Failure::NotFound(_)) => {
                anyhow::bail!(
                    "{} does not know the client of region {} after {} s",
                    node.name,
                    guest.region,
                    KNOWN_WAIT.as_secs()
                )
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Sends packets at a steady pace; returns how many arrived.
async fn stream(src: &Guest, dst: &mut Guest) -> anyhow::Result<u64> {
    let mut pace = interval(PACKET_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut arrived = 0;
    for number in 0..PACKETS_DURING_KILL {
        pace.tick().await;
        arrived += u64::from(src.send(dst, PACKETS + number).await?.is_some());
    }
    Ok(arrived)
}

/// All ordered pairs of different numbers below `count`.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |from| (0..count).filter(move |&to| to != from).map(move |to| (from, to)))
}

/// Two different guests at once.
fn two(guests: &mut [Guest], from: usize, to: usize) -> (&Guest, &mut Guest) {
    let (low, high) = guests.split_at_mut(from.max(to));
    if from < to { (&low[from], &mut high[0]) } else { (&high[0], &mut low[to]) }
}

fn micros(duration: Duration) -> String {
    microseconds(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ordered_pair_comes_once() {
        let all: Vec<_> = pairs(3).collect();
        assert_eq!(all, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
    }
}
