//! The Postgres door: clients of PostgreSQL ask the hub in their own protocol. It answers through [`Hub::query`] and
//! [`Hub::look_up`] like every other door; only the messages are read and written by a library.
//!
//! Each connection has a task of its own, a caller, and a session. Messages are read here and not by the library, so
//! that a message has a greatest length, a client that says nothing does not stay, and a hub that stops lets answers
//! end.

mod cancel;
mod command;
mod connection;
mod copy;
mod cursor;
mod encode;
mod error;
mod extended;
mod form;
mod line;
mod parameters;
mod prepare;
mod prepared;
mod reply;
mod session;
mod settings;
mod shapes;
mod simple;
mod startup;
mod statements;

use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{listen::Listener, tls::Tls};
use crate::{error::Result, hub::Hub};
use cancel::Registry;

/// How callers show who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Auth {
    /// The token is sent as a password, over a connection that nobody else can read.
    #[default]
    Token,
    /// The client proves by SCRAM-SHA-256 that it has the token. Tokens made by hubs before this was known cannot be
    /// proved.
    Scram,
}

/// Everything the Postgres door needs besides a hub.
#[derive(Clone)]
pub struct Options {
    /// TLS, where clients may ask for it; without it only clients on the same machine are let in.
    pub tls: Option<Tls>,
    /// How callers show who they are.
    pub auth: Auth,
    /// Whether something in front of the hub keeps connections from being read, so that plain ones are taken from
    /// other machines, too.
    pub behind_proxy: bool,
    /// How long a client may take until it is let in.
    pub startup: Duration,
    /// How long a client may take nothing of what it is sent, until its connection and what waits for it are given up.
    pub unread: Duration,
    /// How long running statements may take once the hub was asked to stop.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: None,
            auth: Auth::Token,
            behind_proxy: false,
            startup: Duration::from_secs(10),
            unread: Duration::from_secs(300),
            patience: Duration::from_secs(10),
        }
    }
}

/// What connections share.
struct Door {
    hub: Arc<Hub>,
    options: Options,
    registry: Arc<Registry>,
}

/// Serves until `stop` is cancelled, then lets running statements end, as long as the patience lasts.
///
/// # Errors
/// A fault of the system's random source.
pub async fn serve(listener: Listener, hub: Arc<Hub>, options: Options, stop: CancellationToken) -> Result<()> {
    let listener = listener.at("postgres");
    let patience = options.patience;
    let door = Arc::new(Door { hub, options, registry: Registry::new()? });
    let connections = TaskTracker::new();
    let over = CancellationToken::new();
    loop {
        let (stream, address, permit) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (door, stop, over) = (Arc::clone(&door), stop.clone(), over.clone());
        connections.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = over.cancelled() => {}
                () = connection::run(stream, address, &door, &stop) => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(patience, connections.wait()).await.is_err() {
        // What still runs is stopped in the engine, too, and recorded as such.
        door.registry.cancel_all();
        over.cancel();
        connections.wait().await;
    }
    Ok(())
}
