//! How many connections one address may hold (policy §6). One too many is hung up on.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use socket2::SockRef;

use super::client_address;
use crate::config::limits::{CONNECTIONS_PER_IP, UNREAD_TIME};
use crate::config::{Network, is_in};

/// The open connections of a listener, by address. Trusted proxies hold as many as they like.
#[derive(Clone)]
pub struct Connections {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    trusted: Arc<[Network]>,
}

/// A connection that counts, until it ends or somebody else answers for it.
pub struct Slot(Mutex<Option<Held>>);

struct Held {
    address: IpAddr,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// From now on the connection of this request counts for its address no longer.
pub fn release(request: &HttpRequest) {
    if let Some(slot) = request.conn_data::<Slot>() {
        let mut held = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(held.take());
    }
}

impl Connections {
    /// None so far.
    pub fn new(trusted: &[Network]) -> Self {
        Self {
            open: Arc::default(),
            trusted: trusted.into(),
        }
    }

    /// Counts a connection that was just accepted, or hangs up.
    pub fn accept(&self, stream: Option<&TcpStream>, connection: &mut Extensions) {
        let Some(stream) = stream else { return };
        // Whoever takes nothing of what it asked for is not kept for ever.
        let _ = SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIME));
        let address = client_address::peer(stream.peer_addr().ok());
        if is_in(&self.trusted, address) {
            return;
        }
        match self.take(address) {
            Some(slot) => {
                connection.insert(slot);
            }
            None => {
                tracing::warn!(event = "ratelimit.hit", reason = "connections", ip = %address);
                // Whoever hung up first is told so by the next read.
                let _ = SockRef::from(stream).shutdown(Shutdown::Both);
            }
        }
    }

    fn take(&self, address: IpAddr) -> Option<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let held = open.entry(address).or_default();
        if *held >= CONNECTIONS_PER_IP {
            return None;
        }
        *held += 1;
        Some(Slot(Mutex::new(Some(Held {
            address,
            open: Arc::clone(&self.open),
        }))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = open.get_mut(&self.address) {
            *held -= 1;
            if *held == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_so_many_and_gets_back_what_it_gives_up() {
        let connections = Connections::new(&[]);
        let (one, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut held: Vec<Slot> = (0..CONNECTIONS_PER_IP)
            .map(|_| connections.take(one).unwrap())
            .collect();
        assert!(connections.take(one).is_none());
        assert!(connections.take(other).is_some());
        held.pop();
        held.push(connections.take(one).unwrap());
        assert!(connections.take(one).is_none());
        drop(held);
        assert!(connections.open.lock().unwrap().is_empty());
    }
}
