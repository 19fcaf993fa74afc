//! The far side: a network with nothing behind it, with the servers an agent would talk to. What
//! arrives there is written down, and is the only proof that something did or did not get out.

mod dns;
mod https;
mod sightings;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};

pub use dns::Zone;
pub use https::Certificates;
pub use sightings::{Seen, Sighting, Sightings};

use super::place::Place;

/// Where the sandbox's host is in the demo's network. All of these are addresses that a public
/// host could have; none of them is reachable from here by any other way.
pub const HOST: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 10);
/// The servers that the policy names.
pub const FRIENDLY: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
/// The name server.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 53);
/// The server that no policy names.
pub const EVIL: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 66);
/// Where clouds have their metadata service.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where the UDP listener is, at [`EVIL`].
pub const UDP_PORT: u16 = 4433;

/// Everything in the network that a person looks at before it is gone.
#[derive(Debug)]
pub struct Outside {
    place: Place,
    sightings: Sightings,
}

impl Outside {
    /// Makes the network, joins it to `inside` and starts the servers.
    ///
    /// # Errors
    /// The network cannot be made.
    pub fn start(
        inside: &Place,
        zone: Zone,
        certificates: &Certificates,
        ports: &BTreeSet<u16>,
    ) -> Result<Self> {
        let place = Place::network()?;
        join(inside, &place)?;
        let sightings = Sightings::default();
        let outside = Self { place, sightings };
        let name_server = outside.udp(NAME_SERVER, 53)?;
        let listener = outside.udp(EVIL, UDP_PORT)?;
        let sightings = outside.sightings.clone();
        thread::spawn(move || dns::serve(&name_server, &zone, &sightings));
        let sightings = outside.sightings.clone();
        thread::spawn(move || listen(&listener, &sightings));
        let tls = certificates.server()?;
        for address in [FRIENDLY, EVIL] {
            for &port in ports {
                let tls = (port != 80).then(|| Arc::clone(&tls));
                outside.serve(address, port, tls)?;
            }
        }
        outside.serve(METADATA, 80, None)?;
        Ok(outside)
    }

    /// What has arrived since the last call.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub fn take(&self) -> Result<Seen> {
        let echoes = self.place.enter(|| {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
            sightings::echoes(&text).context("the kernel's ICMP counters have an unknown form")
        })?;
        Ok(self.sightings.take(echoes))
    }

    fn udp(&self, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
        self.place.enter(|| {
            UdpSocket::bind((address, port))
                .with_context(|| format!("cannot listen on {address}:{port}/udp"))
        })
    }

    fn serve(
        &self,
        address: Ipv4Addr,
        port: u16,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Result<()> {
        let listener = self.place.enter(|| {
            TcpListener::bind((address, port))
                .with_context(|| format!("cannot listen on {address}:{port}/tcp"))
        })?;
        let at = SocketAddr::new(IpAddr::V4(address), port);
        let sightings = self.sightings.clone();
        thread::spawn(move || https::serve(&listener, at, tls.as_ref(), &sightings));
        Ok(())
    }
}

/// Two interfaces, joined to each other and to nothing else: no route leads out of either side.
fn join(inside: &Place, outside: &Place) -> Result<()> {
    inside.ip(&format!(
        "link set lo up\n\
         link add clawdemo0 type veth peer name clawdemo1 netns {}\n\
         addr add {HOST}/24 dev clawdemo0\n\
         link set clawdemo0 up\n",
        outside.network_path()
    ))?;
    let mut addresses = String::from("link set lo up\nlink set clawdemo1 up\n");
    for address in [FRIENDLY, NAME_SERVER, EVIL] {
        addresses.push_str(&format!("addr add {address}/24 dev clawdemo1\n"));
    }
    addresses.push_str(&format!("addr add {METADATA}/32 dev clawdemo1\n"));
    outside.ip(&addresses)?;
    inside.ip(&format!("route add {METADATA}/32 dev clawdemo0\n"))
}

fn listen(socket: &UdpSocket, sightings: &Sightings) {
    let mut buffer = [0; 2048];
    while let Ok((length, _)) = socket.recv_from(&mut buffer) {
        sightings.add(Sighting::Datagram { bytes: length });
    }
}
