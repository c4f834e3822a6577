//! For tests, of this crate and of others: an authoritative DNS server on loopback whose records change while it runs.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::TokioRuntimeProvider;
use hickory_server::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneHandler, ZoneType};
use tokio::net::{TcpListener, UdpSocket};

/// The zone that it serves.
pub const ZONE: &str = "test.";

/// A connection over TCP is closed after so long without a question, and has so many answers under way.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_ANSWERS_MAX: usize = 16;

const BIND_ATTEMPTS: usize = 16;

/// A running server. Dropping it ends it.
pub struct DnsServer {
    zone: Arc<InMemoryZoneHandler<TokioRuntimeProvider>>,
    addr: SocketAddr,
    _server: Server<Catalog>,
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl DnsServer {
    /// Serves an empty zone [`ZONE`] over UDP and TCP on `addr`.
    ///
    /// # Errors
    /// The address is taken.
    ///
    /// # Panics
    /// Never: the names are constants.
    pub async fn start(addr: SocketAddr) -> std::io::Result<Self> {
        let origin = name(ZONE);
        let zone = InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
        let soa = SOA::new(origin.clone(), origin.clone(), 1, 3600, 60, 3600, 1);
        zone.upsert(Record::from_rdata(origin.clone(), 1, RData::SOA(soa)), 1).await;
        let zone = Arc::new(zone);
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::new(&origin), vec![Arc::clone(&zone) as Arc<dyn ZoneHandler>]);
        let (udp, tcp) = bind(addr).await?;
        let addr = udp.local_addr()?;
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, TCP_TIMEOUT, TCP_ANSWERS_MAX);
        Ok(Self { zone, addr, _server: server })
    }

    /// Where it serves.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces all records of `host` by A and AAAA records.
    ///
    /// # Panics
    /// `host` is not a name.
    pub async fn set_addresses(&self, host: &str, ttl_seconds: u32, addresses: &[IpAddr]) {
        let data = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => RData::A(A(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
        });
        self.set(host, ttl_seconds, data.collect()).await;
    }

    /// Replaces all records of `service` by SRV records of these hosts and ports.
    ///
    /// # Panics
    /// `service` or a host is not a name.
    pub async fn set_service(&self, service: &str, ttl_seconds: u32, hosts: &[(&str, u16)]) {
        let data = hosts.iter().map(|(host, port)| RData::SRV(SRV::new(0, 0, *port, name(host))));
        self.set(service, ttl_seconds, data.collect()).await;
    }

    /// Replaces all records of a name; none means that the name is gone.
    async fn set(&self, of: &str, ttl_seconds: u32, data: Vec<RData>) {
        let of = name(of);
        let lower = LowerName::new(&of);
        self.zone.records_mut().await.retain(|key, _| *key.name() != lower);
        for data in data {
            assert!(self.zone.upsert(Record::from_rdata(of.clone(), ttl_seconds, data), 2).await, "{of} is in the zone");
        }
    }
}

/// Both on one port; the port that UDP is given may be taken for TCP.
async fn bind(addr: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = BIND_ATTEMPTS;
    loop {
        let udp = UdpSocket::bind(addr).await?;
        attempts -= 1;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if addr.port() != 0 || attempts == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}
