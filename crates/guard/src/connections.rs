//! How many connections one host may hold, so that it does not take all of them from the proxy.

use std::any::Any;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use socket2::SockRef;

/// Connections of one host: an IPv4 address or an IPv6 /64. More than a proxy needs for thousands of
/// requests at once, and a quarter of all.
const PER_HOST: usize = 2_500;

/// The open connections by host. Programs on this host, and Unix sockets, are not limited.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<IpAddr, OpenConnection>>>);

/// What a host holds.
#[derive(Default)]
struct OpenConnection {
    connections: usize,
    /// A refusal was logged since the host last held nothing. One line is enough.
    is_logged: bool,
}

/// A counted connection. It counts until the slot is dropped.
pub struct Slot {
    host: IpAddr,
    connections: Connections,
}

impl Connections {
    /// Counts a connection that was just accepted, or closes it. Nothing of it has been read yet.
    pub fn accept(&self, stream: &dyn Any, connection: &mut Extensions) {
        let Some(stream) = stream.downcast_ref::<TcpStream>() else {
            return;
        };
        let Ok(peer) = stream.peer_addr() else { return };
        let address = peer.ip().to_canonical();
        if address.is_loopback() {
            return;
        }
        match self.take(address) {
            Some(slot) => {
                connection.insert(slot);
            }
            None => {
                if self.is_first_refusal(address) {
                    tracing::warn!(event = "guard.conn_limit", reason = "connections", ip = %address);
                }
                // A peer that has closed it already is noticed by the next read.
                let _ = SockRef::from(stream).shutdown(Shutdown::Both);
            }
        }
    }

    fn take(&self, address: IpAddr) -> Option<Slot> {
        let host = host(address);
        let mut open = self.lock();
        let held = open.entry(host).or_default();
        if held.connections >= PER_HOST {
            return None;
        }
        held.connections += 1;
        Some(Slot {
            host,
            connections: self.clone(),
        })
    }

    fn is_first_refusal(&self, address: IpAddr) -> bool {
        let mut open = self.lock();
        let held = open.get_mut(&host(address));
        held.is_some_and(|held| !std::mem::replace(&mut held.is_logged, true))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, OpenConnection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the address that identifies a host: the /64 prefix of an IPv6 address, because a host
/// may have every address in it.
fn host(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        if let Some(held) = open.get_mut(&self.host) {
            held.connections -= 1;
            if held.connections == 0 {
                open.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_host_are_limited() {
        let connections = Connections::default();
        for (one, same, other) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"),
        ] {
            let take = |address: &str| connections.take(address.parse().unwrap());
            let mut held: Vec<Slot> = (0..PER_HOST).map(|_| take(one).unwrap()).collect();
            assert!(take(same).is_none());
            assert!(take(other).is_some());
            held.pop();
            assert!(take(same).is_some());
        }
        assert!(connections.lock().is_empty());
    }
}
