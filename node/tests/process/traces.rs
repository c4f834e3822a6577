//! Traces reach a real OTLP receiver.

use std::collections::HashMap;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::harness::{DEADLINE, Home};
use crate::relay::{client, packet};

/// Takes whatever is exported.
struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.try_send(request.into_inner()).map_err(|_| Status::resource_exhausted("full"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn texts(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some((attribute.key.clone(), text.clone())),
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}

#[tokio::test]
async fn a_sampled_packet_is_a_span_with_the_node_and_region_it_passed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("otlp.endpoint=http://{}", listener.local_addr().unwrap());
    let (exports, mut received) = mpsc::channel(64);
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Receiver(exports)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let tracker = TaskTracker::new();
    let server = tracker.spawn(server);

    let home = Home::new();
    let node = home.start(&["--set", &endpoint, "--set", "otlp.sample_ratio=1.0"]).await;
    let (sender, a) = client(&node, false).await;
    let (mut receiver, b) = client(&node, false).await;
    sender.sender().send(&b, b"traced").await.unwrap();
    assert_eq!(packet(&mut receiver).await, (a, b"traced".to_vec()));
    // Whatever waits is exported at the end.
    node.stop().await;

    let export = timeout(DEADLINE, received.recv()).await.expect("an export").unwrap();
    let [resource] = export.resource_spans.as_slice() else { panic!("{export:?}") };
    let about = texts(&resource.resource.as_ref().unwrap().attributes);
    assert_eq!((about["causeway.node"].as_str(), about["causeway.region"].as_str()), ("a-1", "a"));
    assert_eq!(about["service.name"], "causewayd");
    let spans: Vec<_> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let span = spans.iter().find(|span| span.name == "origin").unwrap_or_else(|| panic!("no origin among {spans:?}"));
    assert!(span.parent_span_id.is_empty(), "a root");
    let text = texts(&span.attributes);
    assert!(text["dst"].starts_with('[') && text["dst"].len() == 7, "keys are cut in traces too: {text:?}");
    server.abort();
}

#[tokio::test]
async fn an_unreachable_receiver_changes_nothing_for_clients() {
    let home = Home::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoint = format!("otlp.endpoint=http://{closed}");
    let mut node = home.start(&["--set", &endpoint, "--set", "otlp.sample_ratio=1.0"]).await;
    let (sender, a) = client(&node, false).await;
    let (mut receiver, b) = client(&node, false).await;
    sender.sender().send(&b, b"x").await.unwrap();
    assert_eq!(packet(&mut receiver).await.0, a);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended().await.code(), Some(0), "{}", node.log());
}
