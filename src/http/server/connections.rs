//! Limits of the connections that one address and one node may hold (policy §6), applied before the first
//! byte of a connection is read: to a TLS handshake, and to the connection as a whole.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use actix_web::rt::net::TcpStream;
use socket2::SockRef;
use tokio::sync::oneshot;

use crate::config::limits::{CONNECTIONS_PER_IP, HANDSHAKES, HANDSHAKES_PER_IP, UNREAD_TIME};
use crate::config::{Network, is_in};
use crate::http::server::client_address;
use crate::http::server::rate_limit::source;
use crate::metrics::REFUSED;

/// The open connections of a listener, by source: an IPv4 address or an IPv6 /64. Trusted proxies may hold
/// any number.
#[derive(Clone)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    trusted: Arc<[Network]>,
}

#[derive(Default)]
struct Open {
    sources: HashMap<Network, Counts>,
    /// The open handshakes, oldest first. The connection of one that is removed is closed.
    handshakes: BTreeMap<u64, oneshot::Sender<()>>,
    /// The number of the next handshake.
    next: u64,
}

/// What a source holds.
#[derive(Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    /// A refusal was logged since the source last held nothing. One line is enough: an attacker may open
    /// thousands of connections per second.
    is_logged: bool,
}

/// A counted connection. It counts until the slot is dropped.
pub struct Slot {
    source: Option<Network>,
    open: Arc<Mutex<Open>>,
}

/// An open TLS handshake. It counts until it is dropped, and resolves when it is to be closed in favour of
/// a newer one.
pub struct Handshake {
    number: u64,
    source: Option<Network>,
    open: Arc<Mutex<Open>>,
    closed: oneshot::Receiver<()>,
}

impl Connections {
    /// Creates the counters of a listener.
    pub fn new(trusted: &[Network]) -> Self {
        Self {
            open: Arc::default(),
            trusted: trusted.into(),
        }
    }

    /// Counts an accepted connection. Returns `None` if its source holds too many; the caller closes it.
    /// A Unix socket has no address and is not limited.
    pub fn admit(&self, stream: Option<&TcpStream>) -> Option<Slot> {
        let address = self.prepare(stream);
        let source = address.map(source);
        if !self.lock().take_connection(source) {
            self.refuse(source, address, "connections");
            return None;
        }
        Some(self.slot(source))
    }

    /// Does the same as [`Self::admit`] for a connection that starts with a TLS handshake.
    pub fn admit_handshake(&self, stream: &TcpStream) -> Option<(Slot, Handshake)> {
        let address = self.prepare(Some(stream));
        self.take_handshake(address)
    }

    fn take_handshake(&self, address: Option<IpAddr>) -> Option<(Slot, Handshake)> {
        let source = address.map(source);
        let mut open = self.lock();
        let Some((number, closed)) = open.take_handshake(source) else {
            drop(open);
            self.refuse(source, address, "handshakes");
            return None;
        };
        let is_counted = open.take_connection(source);
        drop(open);
        let handshake = Handshake {
            number,
            source,
            open: Arc::clone(&self.open),
            closed,
        };
        if !is_counted {
            self.refuse(source, address, "connections");
            return None;
        }
        Some((self.slot(source), handshake))
    }

    /// Sets the timeout of a socket. Returns the address that it counts for, if it is limited.
    fn prepare(&self, stream: Option<&TcpStream>) -> Option<IpAddr> {
        let stream = stream?;
        // The kernel gives up on a peer that acknowledges nothing.
        let _ = SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIME));
        let address = client_address::peer(stream.peer_addr().ok());
        (!is_in(&self.trusted, address)).then_some(address)
    }

    fn slot(&self, source: Option<Network>) -> Slot {
        Slot {
            source,
            open: Arc::clone(&self.open),
        }
    }

    /// Counts and logs a refusal.
    fn refuse(&self, source: Option<Network>, address: Option<IpAddr>, limit: &'static str) {
        REFUSED.count(["none".into(), "closed".into(), limit.into()]);
        let (Some(source), Some(address)) = (source, address) else {
            return;
        };
        let is_logged = match self.lock().sources.get_mut(&source) {
            Some(counts) => std::mem::replace(&mut counts.is_logged, true),
            None => false,
        };
        if !is_logged {
            tracing::warn!(event = "http.conn_limit", reason = limit, ip = %address);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Open {
    fn take_connection(&mut self, source: Option<Network>) -> bool {
        let Some(source) = source else { return true };
        let counts = self.sources.entry(source).or_default();
        let is_free = counts.connections < CONNECTIONS_PER_IP;
        counts.connections += usize::from(is_free);
        is_free
    }

    /// Returns the number of a new handshake, and a receiver that resolves when the handshake is to be
    /// closed. `None` if its source has too many. At the limit of the node the oldest handshake is closed,
    /// because otherwise a few sources that never finish their handshakes would lock all others out.
    fn take_handshake(&mut self, source: Option<Network>) -> Option<(u64, oneshot::Receiver<()>)> {
        if let Some(source) = source {
            let counts = self.sources.entry(source).or_default();
            if counts.handshakes >= HANDSHAKES_PER_IP {
                return None;
            }
            counts.handshakes += 1;
        }
        if self.handshakes.len() >= HANDSHAKES {
            self.handshakes.pop_first();
        }
        let (open, closed) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.handshakes.insert(number, open);
        Some((number, closed))
    }

    fn release(&mut self, source: Option<Network>, release: impl FnOnce(&mut Counts)) {
        let Some(source) = source else { return };
        if let Entry::Occupied(mut entry) = self.sources.entry(source) {
            let counts = entry.get_mut();
            release(counts);
            if counts.connections == 0 && counts.handshakes == 0 {
                entry.remove();
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.open).release(self.source, |counts| counts.connections -= 1);
    }
}

impl Future for Handshake {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.closed).poll(context).map(drop)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.handshakes.remove(&self.number);
        open.release(self.source, |counts| counts.handshakes -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some([192, 0, 2, n].into())
    }

    fn take(connections: &Connections, address: Option<IpAddr>) -> Option<Slot> {
        let source = address.map(source);
        let is_counted = connections.lock().take_connection(source);
        is_counted.then(|| connections.slot(source))
    }

    #[test]
    fn connections_of_a_source_are_limited() {
        let connections = Connections::new(&[]);
        let mut held: Vec<Slot> = (0..CONNECTIONS_PER_IP)
            .map(|_| take(&connections, address(1)).unwrap())
            .collect();
        assert!(take(&connections, address(1)).is_none());
        assert!(connections.take_handshake(address(1)).is_none());
        assert!(take(&connections, address(2)).is_some());
        held.pop();
        held.push(take(&connections, address(1)).unwrap());
        assert!(take(&connections, address(1)).is_none());
        drop(held);
        assert!(connections.lock().sources.is_empty());
        assert!(connections.lock().handshakes.is_empty());
    }

    #[test]
    fn addresses_of_an_ipv6_network_share_their_limit() {
        let connections = Connections::new(&[]);
        let of = |network: u16, host: u16| {
            Some(IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, host]))
        };
        let held: Vec<Slot> = (0..CONNECTIONS_PER_IP)
            .map(|n| take(&connections, of(1, n as u16)).unwrap())
            .collect();
        assert!(take(&connections, of(1, 9_999)).is_none());
        assert!(take(&connections, of(2, 1)).is_some());
        drop(held);
    }

    #[test]
    fn handshakes_of_a_source_are_limited() {
        let connections = Connections::new(&[]);
        let mut held: Vec<_> = (0..HANDSHAKES_PER_IP)
            .map(|_| connections.take_handshake(address(1)).unwrap())
            .collect();
        assert!(connections.take_handshake(address(1)).is_none());
        assert!(connections.take_handshake(address(2)).is_some());
        // A finished handshake makes room for another; its connection still counts.
        let (slot, handshake) = held.pop().unwrap();
        drop(handshake);
        held.push(connections.take_handshake(address(1)).unwrap());
        assert!(connections.take_handshake(address(1)).is_none());
        drop((held, slot));
        assert!(connections.lock().sources.is_empty());
    }

    #[test]
    fn oldest_handshake_is_closed_at_the_limit_of_the_node() {
        let connections = Connections::new(&[]);
        // More than the limit of the node needs many sources; trusted proxies count for none.
        let mut held: Vec<Handshake> = (0..HANDSHAKES)
            .map(|_| connections.take_handshake(None).unwrap().1)
            .collect();
        assert!((&mut held[0]).now_or_never().is_none());
        let newest = connections.take_handshake(address(1)).unwrap();
        assert!((&mut held[0]).now_or_never().is_some());
        assert!((&mut held[1]).now_or_never().is_none());
        assert_eq!(connections.lock().handshakes.len(), HANDSHAKES);
        // The end of a closed handshake closes no other.
        drop(held.remove(0));
        assert_eq!(connections.lock().handshakes.len(), HANDSHAKES);
        drop((held, newest));
        assert!(connections.lock().handshakes.is_empty());
    }
}
