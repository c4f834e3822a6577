//! One packet or one proposal, one trace, wherever its hops are.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use causeway_tests_integration::client::{SETTLE, TestClient};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::proxy::MeshProxies;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

/// Exports of three nodes that nobody has looked at yet.
const EXPORTS_MAX: usize = 1024;
/// Spans are exported in batches, a few seconds apart.
const EXPORTED: Duration = Duration::from_secs(30);

/// An OTLP receiver that hands on what it gets.
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.try_send(request.into_inner()).map_err(|_| Status::resource_exhausted("full"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A span and the node it is of.
struct Hop {
    node: String,
    span: Span,
}

fn hops(exported: &ResourceSpans) -> Vec<Hop> {
    let attributes = exported.resource.iter().flat_map(|resource| &resource.attributes);
    let named = attributes.filter(|attribute| attribute.key == "causeway.node");
    let mut names = named.filter_map(|attribute| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(name) => Some(name.clone()),
        _ => None,
    });
    let node = names.next().unwrap_or_default();
    let spans = exported.scope_spans.iter().flat_map(|scope| &scope.spans);
    spans.map(|span| Hop { node: node.clone(), span: span.clone() }).collect()
}

/// By trace: which span is at which node.
type ByTrace = BTreeMap<Vec<u8>, Vec<Hop>>;

/// What a running collector got.
struct Exports {
    /// The settings of nodes that export everything to it.
    settings: [String; 2],
    received: mpsc::Receiver<ExportTraceServiceRequest>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Exports {
    async fn collect() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("otlp.endpoint=\"http://{}\"", listener.local_addr()?);
        let (exports, received) = mpsc::channel(EXPORTS_MAX);
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(exports)));
        let server = TaskTracker::new().spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { settings: [endpoint, "otlp.sample_ratio=1.0".to_owned()], received, server })
    }

    async fn cluster(&self, regions: u32) -> anyhow::Result<Cluster> {
        let [endpoint, ratio] = &self.settings;
        Cluster::start(regions, 1, &[endpoint, ratio]).await
    }

    /// Takes in exports until `found` is in them; `None` if it never is.
    async fn until<T>(&mut self, found: impl Fn(&ByTrace) -> Option<T>) -> Option<T> {
        let mut traces = ByTrace::new();
        let waiting = async {
            loop {
                let export = self.received.recv().await.expect("the collector runs");
                for hop in export.resource_spans.iter().flat_map(hops) {
                    traces.entry(hop.span.trace_id.clone()).or_default().push(hop);
                }
                if let Some(found) = found(&traces) {
                    return found;
                }
            }
        };
        tokio::time::timeout(EXPORTED, waiting).await.ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hops_of_a_forwarded_packet_are_one_trace() -> anyhow::Result<()> {
    let mut exports = Exports::collect().await?;
    let cluster = exports.cluster(2).await?;
    let alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "b-1").await?;
    tokio::time::sleep(SETTLE).await;
    alice.send(bob.key(), b"follow me").await?;
    bob.expect(alice.key(), b"follow me").await?;

    // The only packet of this fleet has an origin at one node and a target at the other.
    let both = exports.until(|traces| {
        traces.values().find_map(|hops| {
            let find = |name: &str| hops.iter().find(|hop| hop.span.name == name);
            let (origin, target) = (find("origin")?, find("target")?);
            assert_eq!((origin.node.as_str(), target.node.as_str()), ("a-1", "b-1"));
            assert!(origin.span.parent_span_id.is_empty(), "the origin begins the trace");
            assert_eq!(target.span.parent_span_id, origin.span.span_id, "the target follows the origin");
            Some(())
        })
    });
    both.await.expect("origin and target in one trace");
    drop((alice, bob));
    cluster.finish(&["a-1", "b-1"], &Expected::default()).await?;
    exports.server.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_that_passes_a_packet_on_is_in_its_trace() -> anyhow::Result<()> {
    let mut exports = Exports::collect().await?;
    let cluster = exports.cluster(3).await?;
    let proxies = MeshProxies::interpose(&cluster).await?;
    let alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "b-1").await?;
    proxies.cut("a-1", "b-1").await;
    // Until both ends know, packets on the cut link may be lost.
    wait_for("a packet to find its way round the cut link", Duration::from_secs(10), async || {
        alice.send(bob.key(), b"round").await?;
        Ok(bob.packet_within(Duration::from_millis(200)).await?.map(drop))
    })
    .await?;

    let all = exports.until(|traces| {
        traces.values().find_map(|hops| {
            let find = |name: &str| hops.iter().find(|hop| hop.span.name == name);
            let (origin, transit, target) = (find("origin")?, find("transit")?, find("target")?);
            let nodes = [origin, transit, target].map(|hop| hop.node.as_str());
            assert_eq!(nodes, ["a-1", "c-1", "b-1"]);
            assert_eq!(transit.span.parent_span_id, origin.span.span_id, "the transit node follows the origin");
            assert_eq!(target.span.parent_span_id, transit.span.span_id, "the target follows the transit node");
            Some(())
        })
    });
    all.await.expect("origin, transit and target in one trace");
    proxies.mend().await;
    cluster.wait_healthy("a-1", Duration::from_secs(20)).await?;
    drop((alice, bob));
    cluster.finish(&["a-1", "b-1", "c-1"], &Expected::default()).await?;
    exports.server.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_proposed_by_a_follower_is_one_trace_with_the_leader() -> anyhow::Result<()> {
    let mut exports = Exports::collect().await?;
    let cluster = exports.cluster(2).await?;
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    // One of the two nodes does not lead.
    let clients = (TestClient::connect(&cluster, "a-1").await?, TestClient::connect(&cluster, "b-1").await?);

    let handled = exports.until(|traces| {
        for hop in traces.values().flatten().filter(|hop| hop.span.parent_span_id.is_empty()) {
            let between_nodes = ["Fleet", "Raft", "Watch"].map(|service| format!("/causeway.v1.{service}/"));
            let starts = between_nodes.iter().any(|service| hop.span.name.starts_with(service));
            assert!(!starts, "{} starts a trace of its own", hop.span.name);
        }
        traces.values().find_map(|hops| {
            let login =
                hops.iter().find(|hop| hop.span.name == "propose" && u128::from(hop.span.start_time_unix_nano) > before)?;
            let leader = hops.iter().find(|hop| hop.span.name == "/causeway.v1.Fleet/Propose")?;
            assert!(login.span.parent_span_id.is_empty(), "the proposal begins the trace");
            assert_eq!(leader.span.parent_span_id, login.span.span_id, "the leader handles the proposal");
            assert_ne!(leader.node, login.node, "the proposer does not lead");
            Some(())
        })
    });
    handled.await.expect("proposer and leader in one trace");
    drop(clients);
    cluster.finish(&["a-1", "b-1"], &Expected::default()).await?;
    exports.server.abort();
    Ok(())
}
