//! Cancel requests: whoever opened a connection may end the statement that runs on it, from another connection, by the
//! number and the secret that it was given.

use std::{
    collections::{HashMap, hash_map},
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use pgwire::{
    api::cancel::CancelHandler,
    messages::{ProtocolVersion, cancel::CancelRequest, startup::SecretKey},
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// How long secrets are where the client takes more than the four bytes of old, in bytes.
const SECRET: usize = 32;

/// What secrets are compared with where there is no connection.
static NOBODYS: [u8; SECRET] = [0; SECRET];

/// The statement that runs on a connection.
type Slot = Arc<Mutex<Option<CancellationToken>>>;

/// The open connections of a door.
pub(super) struct Registry {
    open: Mutex<Open>,
    /// Secrets are compared by their tags under this key, which takes the same time wherever they differ.
    tags: hmac::Key,
}

#[derive(Default)]
struct Open {
    connections: HashMap<i32, (Vec<u8>, Slot)>,
    last: i32,
}

impl Registry {
    /// A door with no connection yet.
    ///
    /// # Errors
    /// A fault of the system's random source.
    pub(super) fn new() -> Result<Arc<Self>> {
        let tags = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Error::internal("the system gave no random bytes"))?;
        Ok(Arc::new(Self { open: Mutex::default(), tags }))
    }

    /// Gives a connection a number that no other open one has, and a secret as long as its protocol takes.
    ///
    /// # Errors
    /// A fault of the system's random source.
    pub(super) fn enter(self: &Arc<Self>, protocol: ProtocolVersion) -> Result<Entry> {
        let mut secret = vec![0; if protocol == ProtocolVersion::PROTOCOL3_0 { 4 } else { SECRET }];
        SystemRandom::new().fill(&mut secret).map_err(|_| Error::internal("the system gave no random bytes"))?;
        let slot = Slot::default();
        let mut open = self.open();
        let pid = loop {
            open.last = if open.last == i32::MAX { 1 } else { open.last + 1 };
            let pid = open.last;
            if let hash_map::Entry::Vacant(vacant) = open.connections.entry(pid) {
                vacant.insert((secret.clone(), Arc::clone(&slot)));
                break pid;
            }
        };
        Ok(Entry { registry: Arc::clone(self), pid, secret, slot })
    }

    /// Ends the statement of that connection, if one runs and the secret is right.
    pub(super) fn cancel(&self, pid: i32, secret: &[u8]) {
        let open = self.open();
        // A connection that does not exist takes as long as a wrong secret.
        let (kept, slot) = match open.connections.get(&pid) {
            Some((kept, slot)) => (kept.as_slice(), Some(slot)),
            None => (NOBODYS.as_slice(), None),
        };
        let right = hmac::verify(&self.tags, secret, hmac::sign(&self.tags, kept).as_ref()).is_ok();
        if let Some(slot) = slot.filter(|_| right) {
            stop(slot);
        }
    }

    /// Ends the statements of all connections.
    pub(super) fn cancel_all(&self) {
        for (_, slot) in self.open().connections.values() {
            stop(slot);
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CancelHandler for Registry {
    async fn on_cancel_request(&self, request: CancelRequest) {
        self.cancel(request.pid, &request.secret_key.to_bytes());
    }
}

/// A connection's place among the open ones, until it is dropped.
pub(super) struct Entry {
    registry: Arc<Registry>,
    pid: i32,
    secret: Vec<u8>,
    slot: Slot,
}

impl Entry {
    /// The connection's number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The connection's secret, as it is told to the client.
    pub(super) fn secret(&self) -> SecretKey {
        match <[u8; 4]>::try_from(self.secret.as_slice()) {
            Ok(short) => SecretKey::I32(i32::from_be_bytes(short)),
            Err(_) => SecretKey::Bytes(self.secret.clone().into()),
        }
    }

    /// Begins a statement that a cancel request ends while the guard lives, and that may take so long, where there is
    /// a limit.
    pub(super) fn run(&self, limit: Option<Duration>) -> Running {
        let stop = CancellationToken::new();
        *locked(&self.slot) = Some(stop.clone());
        Running { slot: Arc::clone(&self.slot), stop, begun: Instant::now(), limit }
    }

    /// Ends the statement that runs, if one does.
    pub(super) fn stop(&self) {
        stop(&self.slot);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.open().connections.remove(&self.pid);
    }
}

/// A statement that a cancel request may end, from its question to the last row that is sent.
pub(super) struct Running {
    slot: Slot,
    stop: CancellationToken,
    begun: Instant,
    limit: Option<Duration>,
}

impl Running {
    /// What is pulled by a cancel request.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits until the statement is to end before all of its answer was sent, and says why.
    pub(super) async fn ended(&self) -> Error {
        let late = async {
            match self.limit {
                Some(limit) => sleep_until(self.begun + limit).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Error::Cancelled,
            () = late => Error::Timeout(self.limit.unwrap_or_default().as_secs()),
        }
    }
}

impl Drop for Running {
    // A cancel request that comes late must not hit the next statement.
    fn drop(&mut self) {
        *locked(&self.slot) = None;
    }
}

fn stop(slot: &Slot) {
    if let Some(stop) = &*locked(slot) {
        stop.cancel();
    }
}

fn locked(slot: &Slot) -> MutexGuard<'_, Option<CancellationToken>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_secret_alone_stops_the_statement_that_runs() {
        let registry = Registry::new().unwrap();
        let entry = registry.enter(ProtocolVersion::PROTOCOL3_0).unwrap();
        let other = registry.enter(ProtocolVersion::PROTOCOL3_2).unwrap();
        assert_ne!(entry.pid(), other.pid());
        assert_eq!((entry.secret.len(), other.secret.len()), (4, 32));

        let running = entry.run(None);
        registry.cancel(entry.pid(), &other.secret);
        registry.cancel(other.pid(), &entry.secret);
        registry.cancel(9_999, &[0; SECRET]);
        assert!(!running.stop().is_cancelled());
        registry.cancel(entry.pid(), &entry.secret().to_bytes());
        assert!(running.stop().is_cancelled());
        drop(running);

        registry.cancel(entry.pid(), &entry.secret);
        assert!(!entry.run(None).stop().is_cancelled());
    }

    #[tokio::test]
    async fn a_statement_ends_by_its_limit_too() {
        let registry = Registry::new().unwrap();
        let entry = registry.enter(ProtocolVersion::PROTOCOL3_2).unwrap();
        let running = entry.run(Some(Duration::from_millis(20)));
        assert!(matches!(running.ended().await, Error::Timeout(0)));
        drop(running);
        let running = entry.run(None);
        let waits = tokio::time::timeout(Duration::from_millis(50), running.ended()).await;
        assert!(waits.is_err(), "nothing ended it");
        entry.stop();
        assert!(matches!(running.ended().await, Error::Cancelled));
    }

    #[test]
    fn a_connection_that_ended_is_forgotten() {
        let registry = Registry::new().unwrap();
        let entry = registry.enter(ProtocolVersion::PROTOCOL3_2).unwrap();
        let running = entry.run(None);
        let (pid, secret) = (entry.pid(), entry.secret.clone());
        drop(entry);
        registry.cancel(pid, &secret);
        assert!(!running.stop().is_cancelled());
        assert!(registry.open().connections.is_empty());
    }
}
