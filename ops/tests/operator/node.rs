//! A node that answers the operator API with fixed values.

use std::pin::Pin;

use bytes::Bytes;
use causeway_rpc::v1;
use causeway_rpc::v1::operator_server::Operator;
use futures::Stream;
use tonic::{Request, Response, Status};

pub(crate) const KEY: [u8; 32] = [0xab; 32];
const A_1: u64 = 0x0a01;
const B_1: u64 = 0x0b01;
/// The way of packets to it is known only in part.
pub(crate) const UNANSWERED: [u8; 32] = [7; 32];

/// A node of a fleet of two, with one client at `b-1`.
pub(crate) struct Node;

fn record(node_id: u64, name: &str, region: u64, code: &str) -> v1::NodeRecord {
    v1::NodeRecord {
        node_id,
        name: name.to_owned(),
        region: Some(v1::Region {
            id: region,
            code: code.to_owned(),
            name: format!("Region {code}"),
            latitude: Some(50.5),
            longitude: None,
        }),
        mesh_addr: "127.0.0.1:7001".to_owned(),
        relay: Some(v1::RelayEndpoint {
            host_name: format!("{name}.test"),
            ipv4: "127.0.0.1".to_owned(),
            derp_port: 443,
            ..Default::default()
        }),
        voter_eligible: true,
        version: "0.1.0".to_owned(),
        ..Default::default()
    }
}

fn summaries() -> Vec<v1::NodeSummary> {
    let summary = |record, raft_role: &str, claims| v1::NodeSummary {
        node: Some(record),
        raft_role: raft_role.to_owned(),
        epoch: 3,
        heard: true,
        fenced: false,
        claims,
    };
    vec![summary(record(A_1, "a-1", 901, "a"), "leader", 0), summary(record(B_1, "b-1", 902, "b"), "learner", 1234)]
}

fn entry() -> v1::PresenceEntry {
    let claim = v1::PresenceClaim {
        rank: Some(v1::Rank { clock_us: 1_700_000_000_123_456, node_id: B_1 }),
        home: true,
        kind: v1::ClaimKind::Derp.into(),
        epoch: 3,
        valid: true,
        preferred: true,
        why: "the only claim".to_owned(),
        node_name: "b-1".to_owned(),
        region_code: "b".to_owned(),
    };
    v1::PresenceEntry { key: Bytes::copy_from_slice(&KEY), claims: vec![claim] }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Operator for Node {
    async fn get_node_status(&self, _: Request<v1::GetNodeStatusRequest>) -> Result<Response<v1::NodeStatus>, Status> {
        Ok(Response::new(v1::NodeStatus {
            node: Some(record(A_1, "a-1", 901, "a")),
            ready: true,
            uptime_ms: 245_000,
            pid: 42,
            peers: vec![v1::PeerStatus {
                node_id: B_1,
                name: "b-1".to_owned(),
                watch_live: true,
                link_up: true,
                ..Default::default()
            }],
            fleet_ca_der: Bytes::from_static(b"certificate"),
            ..Default::default()
        }))
    }

    async fn init_cluster(&self, request: Request<v1::InitClusterRequest>) -> Result<Response<v1::InitClusterResponse>, Status> {
        match request.into_inner().voters.as_slice() {
            [voter] if voter == "a-1" => {
                Ok(Response::new(v1::InitClusterResponse { fleet_id: "f1".to_owned(), already: true, voters: vec![A_1] }))
            }
            other => Err(Status::invalid_argument(format!("voters: {} is an even number", other.len()))),
        }
    }

    async fn evict_node(&self, request: Request<v1::EvictNodeRequest>) -> Result<Response<v1::EvictNodeResponse>, Status> {
        match request.into_inner().node.as_str() {
            "0000000000000b01" => Ok(Response::new(v1::EvictNodeResponse { node_id: B_1 })),
            _ => Err(Status::unavailable("only the leader evicts: ask node `b-1`")),
        }
    }

    async fn get_cluster_status(&self, _: Request<v1::GetClusterStatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(v1::ClusterStatus {
            fleet_id: "f1".to_owned(),
            leader: A_1,
            term: 2,
            voters: vec![A_1],
            quorum: true,
            healthy: false,
            problems: vec!["b-1 is not heard: its clients are unreachable".to_owned()],
            nodes: summaries(),
            clients: 1234,
            join_policy: "open".to_owned(),
            ..Default::default()
        }))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: summaries() }))
    }

    async fn list_regions(&self, _: Request<v1::ListRegionsRequest>) -> Result<Response<v1::ListRegionsResponse>, Status> {
        let regions = summaries().into_iter().map(|summary| v1::RegionSummary {
            region: summary.node.and_then(|node| node.region),
            nodes: 1,
            nodes_heard: 1,
            claims: summary.claims,
        });
        Ok(Response::new(v1::ListRegionsResponse { regions: regions.collect() }))
    }

    async fn get_presence(&self, request: Request<v1::GetPresenceRequest>) -> Result<Response<v1::PresenceEntry>, Status> {
        let key = request.into_inner().key;
        if key[..] == KEY { Ok(Response::new(entry())) } else { Err(Status::not_found("nobody claims this key")) }
    }

    type ListPresenceStream = Answers<v1::PresenceEntry>;
    async fn list_presence(
        &self,
        request: Request<v1::ListPresenceRequest>,
    ) -> Result<Response<Self::ListPresenceStream>, Status> {
        let here = matches!(request.into_inner().region_id, 0 | 902);
        Ok(Response::new(Box::pin(tokio_stream::iter(here.then(|| Ok(entry()))))))
    }

    type WatchPresenceStream = Answers<v1::PresenceChange>;
    async fn watch_presence(&self, _: Request<v1::WatchPresenceRequest>) -> Result<Response<Self::WatchPresenceStream>, Status> {
        let change = v1::PresenceChange {
            key: Bytes::copy_from_slice(&KEY),
            change: "claimed".to_owned(),
            rank: Some(v1::Rank { clock_us: 1_700_000_000_123_456, node_id: B_1 }),
            at_us: 1_700_000_000_200_000,
            ..Default::default()
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(change)))))
    }

    async fn count_presence(&self, _: Request<v1::CountPresenceRequest>) -> Result<Response<v1::PresenceCount>, Status> {
        let by_node = vec![v1::NodeClaims { node_id: B_1, name: "b-1".to_owned(), claims: 1234 }];
        Ok(Response::new(v1::PresenceCount { keys: 1234, claims: 1234, home_claims: 1000, by_node }))
    }

    async fn get_derp_map(&self, _: Request<v1::GetDerpMapRequest>) -> Result<Response<v1::DerpMapDocument>, Status> {
        let json = r#"{"Regions":{"901":{"RegionID":901,"RegionCode":"a","RegionName":"A","Nodes":[{"Name":"901a","RegionID":901,"HostName":"a-1.test","IPv4":"127.0.0.1","DERPPort":4443}]}}}"#;
        Ok(Response::new(v1::DerpMapDocument { json: json.to_owned() }))
    }

    async fn get_derp_map_settings(
        &self,
        _: Request<v1::GetDerpMapSettingsRequest>,
    ) -> Result<Response<v1::DerpMapSettings>, Status> {
        let region = v1::DerpRegionSettings { id: 901, score: Some(0.5), ..Default::default() };
        let mode = v1::DerpMapMode::CrossListed.into();
        Ok(Response::new(v1::DerpMapSettings { mode, grace_s: 60, regions: vec![region], ..Default::default() }))
    }

    async fn set_derp_map_settings(
        &self,
        request: Request<v1::SetDerpMapSettingsRequest>,
    ) -> Result<Response<v1::SetDerpMapSettingsResponse>, Status> {
        let request = request.into_inner();
        let settings = request.settings.expect("set");
        match settings.mode() {
            v1::DerpMapMode::CrossListed => {}
            v1::DerpMapMode::Balanced => return Err(Status::invalid_argument("regions.901.balancer: is missing")),
            _ => return Err(Status::unavailable("only the leader changes the DERP map: ask node `b-1`")),
        }
        assert!(request.dry_run);
        let json = r#"{"Regions":{"901":{"RegionID":901,"RegionCode":"a","RegionName":"A","Nodes":[{"Name":"a","RegionID":901,"HostName":""}]}}}"#;
        Ok(Response::new(v1::SetDerpMapSettingsResponse {
            json: json.to_owned(),
            edited_regions: vec![901, 902],
            retired_regions: vec![903],
            ..Default::default()
        }))
    }

    async fn get_raft_status(&self, _: Request<v1::GetRaftStatusRequest>) -> Result<Response<v1::RaftStatus>, Status> {
        let member = |node_id, name: &str, voter| v1::RaftMember {
            node_id,
            name: name.to_owned(),
            addr: "h:1".to_owned(),
            voter,
            matched_index: 7,
            heartbeat_ms: 12,
        };
        Ok(Response::new(v1::RaftStatus {
            node_id: A_1,
            state: "leader".to_owned(),
            term: 2,
            leader: A_1,
            last_log_index: 7,
            committed_index: 7,
            applied_index: 7,
            quorum_ack_ms: 5,
            leader_told: true,
            members: vec![member(A_1, "a-1", true), member(B_1, "b-1", false)],
            ..Default::default()
        }))
    }

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Result<Response<v1::TraceResponse>, Status> {
        let hop = |node_id, role: &str, action: &str, next_hop, why: &str| v1::ExplainResponse {
            node_id,
            role: role.to_owned(),
            action: action.to_owned(),
            next_hop,
            target: B_1,
            why: why.to_owned(),
            ..Default::default()
        };
        let mut hops =
            vec![hop(A_1, "origin", "forward", B_1, "the only claim"), hop(B_1, "target", "deliver", 0, "own connection")];
        if request.get_ref().dst == UNANSWERED.as_slice() {
            hops.truncate(1);
            let unanswered = Some(v1::Unanswered { node_id: B_1, why: "no answer in time".to_owned() });
            return Ok(Response::new(v1::TraceResponse { hops, delivered: false, unanswered }));
        }
        Ok(Response::new(v1::TraceResponse { hops, delivered: true, unanswered: None }))
    }

    async fn reload_configuration(
        &self,
        request: Request<v1::ReloadConfigurationRequest>,
    ) -> Result<Response<v1::ReloadOutcome>, Status> {
        let problem =
            |field: &str, message: &str| v1::ConfigurationProblem { field: field.to_owned(), message: message.to_owned() };
        let outcome = v1::ReloadOutcome { node_id: A_1, file: "a-1.toml".to_owned(), ..Default::default() };
        Ok(Response::new(match request.into_inner().node.as_str() {
            "" => v1::ReloadOutcome { changed: vec!["admission.fail_open".to_owned(), "log.filter".to_owned()], ..outcome },
            "a-1" => outcome,
            "b-1" => v1::ReloadOutcome {
                node_id: B_1,
                problems: vec![problem("name", "has changed, which needs a restart"), problem("", "TOML parse error")],
                ..outcome
            },
            other => return Err(Status::not_found(format!("node `{other}` is not known"))),
        }))
    }

    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        match request.into_inner().node.as_str() {
            "b-1" => Ok(Response::new(v1::PingResponse { node_id: B_1, rtt_us: 1250 })),
            "cut" => Err(Status::unavailable("no connection to cut")),
            other => Err(Status::not_found(format!("there is no node {other:?}"))),
        }
    }
}
