//! Where the connections of a door come from: no address has so many that none are left for others. Knows no protocol.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The bits of an IPv6 address that say which network it is in. The rest one machine chooses as it likes (RFC 4291,
/// section 2.5.4, and RFC 8981), so it is not told apart by them.
const NETWORK: u128 = !(u64::MAX as u128);

/// How many connections each address has.
#[derive(Debug)]
pub(super) struct Origins {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection among those of its address, until it is dropped.
#[derive(Debug)]
pub(super) struct Origin {
    origins: Arc<Origins>,
    address: IpAddr,
}

impl Origins {
    /// So many for each address; 0 is as many as there are.
    pub(super) fn new(most: usize) -> Arc<Self> {
        let most = if most == 0 { usize::MAX } else { most };
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// One more connection from there; nothing where that would be too many.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Origin> {
        let address = machine(address);
        let mut open = self.open();
        let count = open.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Origin { origins: Arc::clone(self), address })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let mut open = self.origins.open();
        let Some(count) = open.get_mut(&self.address) else { return };
        *count -= 1;
        if *count == 0 {
            open.remove(&self.address);
        }
    }
}

/// What stands for all addresses that one machine may have.
fn machine(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_no_more_than_its_share() {
        let origins = Origins::new(2);
        let (first, _second) = (origins.admit(ip("192.0.2.1")).unwrap(), origins.admit(ip("192.0.2.1")).unwrap());
        assert!(origins.admit(ip("192.0.2.1")).is_none());
        // Written in another way it is the same.
        assert!(origins.admit(ip("::ffff:192.0.2.1")).is_none());
        let _other = origins.admit(ip("192.0.2.2")).unwrap();
        drop(first);
        assert!(origins.admit(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn a_machine_gets_no_more_by_more_addresses_of_its_network() {
        let origins = Origins::new(1);
        let _held = origins.admit(ip("2001:db8:0:1::1")).unwrap();
        assert!(origins.admit(ip("2001:db8:0:1:ffff::2")).is_none());
        assert!(origins.admit(ip("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn who_has_no_connection_is_not_remembered() {
        let origins = Origins::new(0);
        let held: Vec<_> = (0..1_000).map(|_| origins.admit(ip("127.0.0.1")).unwrap()).collect();
        assert_eq!(*origins.open().get(&ip("127.0.0.1")).unwrap(), 1_000);
        drop(held);
        assert!(origins.open().is_empty());
    }
}
