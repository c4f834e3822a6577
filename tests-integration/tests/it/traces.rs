//! One packet, one trace, wherever its hops are.

use std::collections::BTreeMap;
use std::time::Duration;

use causeway_tests_integration::client::{SETTLE, TestClient};
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
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

#[tokio::test(flavor = "multi_thread")]
async fn the_hops_of_a_forwarded_packet_are_one_trace() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("otlp.endpoint=\"http://{}\"", listener.local_addr()?);
    let (exports, mut received) = mpsc::channel(EXPORTS_MAX);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(exports)));
    let server = TaskTracker::new().spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let cluster = Cluster::start(2, 1, &[&endpoint, "otlp.sample_ratio=1.0"]).await?;
    let alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "b-1").await?;
    tokio::time::sleep(SETTLE).await;
    alice.send(bob.key(), b"follow me").await?;
    bob.expect(alice.key(), b"follow me").await?;

    // By trace: which span is at which node. The only packet of this fleet has an origin at one and a target at the other.
    let mut traces: BTreeMap<Vec<u8>, Vec<Hop>> = BTreeMap::new();
    let complete = tokio::time::timeout(EXPORTED, async {
        loop {
            let export = received.recv().await.expect("the collector runs");
            for hop in export.resource_spans.iter().flat_map(hops) {
                traces.entry(hop.span.trace_id.clone()).or_default().push(hop);
            }
            let find = |hops: &[Hop], name: &str| hops.iter().position(|hop| hop.span.name == name);
            let both = traces.values().find_map(|hops| Some((hops, find(hops, "origin")?, find(hops, "target")?)));
            if let Some((hops, origin, target)) = both {
                let (origin, target) = (&hops[origin], &hops[target]);
                assert_eq!((origin.node.as_str(), target.node.as_str()), ("a-1", "b-1"));
                assert!(origin.span.parent_span_id.is_empty(), "the origin begins the trace");
                assert_eq!(target.span.parent_span_id, origin.span.span_id, "the target follows the origin");
                return;
            }
        }
    });
    complete.await.expect("origin and target in one trace");
    drop((alice, bob));
    cluster.finish(&["a-1", "b-1"], &Expected::default()).await?;
    server.abort();
    Ok(())
}
