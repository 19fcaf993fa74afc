//! The sockets of one sandbox's resolver, on the loopback of the current network namespace.
//! The kernel knows one port per family, so UDP and TCP share it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

/// How often another port is tried when the one the kernel chose for UDP is taken for TCP.
const ATTEMPTS: usize = 32;

/// UDP and TCP on one port of one loopback address.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
    port: u16,
}

/// Bound and non-blocking sockets that nobody serves yet: questions wait in their queues.
#[derive(Debug)]
pub struct ResolverSockets {
    pub(super) v4: Pair,
    pub(super) v6: Option<Pair>,
}

impl ResolverSockets {
    /// Binds 127.0.0.1 and, where the host has it, ::1, on ports that the kernel chooses.
    ///
    /// # Errors
    /// The loopback interface is down, or no port is free.
    pub fn bind() -> io::Result<Self> {
        let v4 = Pair::bind(Ipv4Addr::LOCALHOST.into())?;
        let v6 = match Pair::bind(Ipv6Addr::LOCALHOST.into()) {
            Ok(pair) => Some(pair),
            Err(error) if no_ipv6(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// Binds the ports that an earlier clawbox had, as far as they are still free, and others for the
    /// rest.
    ///
    /// # Errors
    /// As [`ResolverSockets::bind`].
    pub fn bind_at(ports: [u16; 2]) -> io::Result<Self> {
        let [v4, v6] = ports;
        let again = |ip: IpAddr, port: u16| Pair::bind_to(ip, port).ok().filter(|_| port != 0);
        let fresh = Self::bind()?;
        Ok(Self {
            v4: again(Ipv4Addr::LOCALHOST.into(), v4).unwrap_or(fresh.v4),
            v6: again(Ipv6Addr::LOCALHOST.into(), v6).or(fresh.v6),
        })
    }

    /// The ports for IPv4 and IPv6 sockets, as the kernel programs need them.
    #[must_use]
    pub fn ports(&self) -> (u16, Option<u16>) {
        (self.v4.port, self.v6.as_ref().map(|pair| pair.port))
    }
}

impl Pair {
    fn bind(ip: IpAddr) -> io::Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::try_bind(ip) {
                Ok(pair) => return Ok(pair),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                Err(error) if no_ipv6(&error) && ip.is_ipv6() => return Err(error),
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!(
                            "cannot listen on {ip} for the sandbox's resolver: {error} \
                             (is the loopback interface up? `ip link set lo up`)"
                        ),
                    ));
                }
            }
        }
        let detail = last.map_or_else(String::new, |error| format!(": {error}"));
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "no port of {ip} is free for both UDP and TCP{detail} \
                 (widen net.ipv4.ip_local_port_range)"
            ),
        ))
    }

    fn try_bind(ip: IpAddr) -> io::Result<Self> {
        Self::bind_to(ip, 0)
    }

    fn bind_to(ip: IpAddr, port: u16) -> io::Result<Self> {
        let udp = UdpSocket::bind(SocketAddr::new(ip, port))?;
        let port = udp.local_addr()?.port();
        let tcp = TcpListener::bind(SocketAddr::new(ip, port))?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp, port })
    }
}

/// The host, or this network namespace, has no IPv6 or not on its loopback.
fn no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_and_tcp_share_a_port_and_two_resolvers_do_not() {
        let one = ResolverSockets::bind().unwrap();
        let two = ResolverSockets::bind().unwrap();
        let (port, _) = one.ports();
        assert_eq!(one.v4.udp.local_addr().unwrap().port(), port);
        assert_eq!(one.v4.tcp.local_addr().unwrap().port(), port);
        assert_ne!(port, two.ports().0);
        assert!(one.v4.udp.local_addr().unwrap().ip().is_loopback());
    }
}
