//! All doors of a hub together: bound before it opens, so that a port in use is told of first, and stopped together.

use std::{net::SocketAddr, sync::Arc};

use futures::future::{BoxFuture, FutureExt, join_all};
use tokio_util::sync::CancellationToken;

use super::{
    flight, http,
    listen::{Limits, Listener},
    postgres,
    tls::Tls,
};
use crate::{
    error::{Error, Result},
    hub::Hub,
};

/// What switches a door off in place of its address.
pub const OFF: &str = "none";

/// Where the doors listen, each `HOST:PORT`, or [`OFF`].
#[derive(Debug, Clone, Copy)]
pub struct Addresses<'a> {
    /// HTTP.
    pub http: &'a str,
    /// The Postgres protocol.
    pub postgres: &'a str,
    /// Flight SQL.
    pub flight: &'a str,
}

/// How the doors are kept from those who could listen in.
#[derive(Debug, Clone)]
pub enum Cover {
    /// TLS at all doors.
    Tls(Tls),
    /// None, so only who is on this machine is let in.
    Loopback,
    /// None here: TLS ends at a proxy, and nobody else reaches the doors.
    Proxy,
}

/// What the doors need besides a hub.
#[derive(Default)]
pub struct Options {
    /// For HTTP.
    pub http: http::Options,
    /// For the Postgres protocol.
    pub postgres: postgres::Options,
    /// For Flight SQL.
    pub flight: flight::Options,
}

/// The doors of a hub, bound and not open yet.
pub struct Doors {
    http: Option<Listener>,
    postgres: Option<Listener>,
    flight: Option<Listener>,
    scheme: &'static str,
}

impl Doors {
    /// Binds the doors.
    ///
    /// # Errors
    /// [`Error::Usage`] where all are off, one cannot be bound, or one would take tokens in the clear from elsewhere.
    pub async fn bind(addresses: Addresses<'_>, cover: &Cover, limits: Limits) -> Result<Self> {
        let http = bind("--http", addresses.http, cover, limits).await?;
        let postgres = bind("--postgres", addresses.postgres, cover, limits).await?;
        let flight = bind("--flight", addresses.flight, cover, limits).await?;
        if http.is_none() && postgres.is_none() && flight.is_none() {
            return Err(Error::Usage("--http, --postgres and --flight are all none: no door would be left".into()));
        }
        let (tls, scheme) = match cover {
            Cover::Tls(tls) => (Some(tls), "https"),
            Cover::Loopback | Cover::Proxy => (None, "http"),
        };
        Ok(Self {
            http: http.map(|listener| listener.with_tls(tls.cloned(), &[b"h2", b"http/1.1"])),
            postgres: postgres.map(|listener| listener.with_tls(tls.cloned(), &[b"postgresql"])),
            flight: flight.map(|listener| listener.with_tls(tls.cloned(), &[b"h2"])),
            scheme,
        })
    }

    /// The address of the HTTP door as clients name it; nothing where it is off.
    ///
    /// # Errors
    /// Only a fault of the system.
    pub fn http(&self) -> Result<Option<String>> {
        let address = address(self.http.as_ref())?;
        Ok(address.map(|address| format!("{}://{address}", self.scheme)))
    }

    /// Where the Postgres door listens; nothing where it is off.
    ///
    /// # Errors
    /// Only a fault of the system.
    pub fn postgres(&self) -> Result<Option<SocketAddr>> {
        address(self.postgres.as_ref())
    }

    /// The address of the Flight SQL door as clients name it; nothing where it is off.
    ///
    /// # Errors
    /// Only a fault of the system.
    pub fn flight(&self) -> Result<Option<String>> {
        let scheme = if self.scheme == "https" { "grpc+tls" } else { "grpc" };
        Ok(address(self.flight.as_ref())?.map(|address| format!("{scheme}://{address}")))
    }

    /// Opens the doors until `stop`, then lets running requests finish. Where one fails, all are closed.
    ///
    /// # Errors
    /// That of the first door that failed.
    pub async fn serve(self, hub: Arc<Hub>, options: Options, stop: CancellationToken) -> Result<()> {
        let mut doors: Vec<BoxFuture<'static, Result<()>>> = Vec::new();
        if let Some(listener) = self.http {
            let router = http::router(Arc::clone(&hub), options.http);
            doors.push(http::serve(listener, router, stop.clone()).boxed());
        }
        if let Some(listener) = self.postgres {
            // This protocol asks for TLS in its own words, so its door does the handshake.
            let options = postgres::Options { tls: listener.tls().cloned(), ..options.postgres };
            doors.push(postgres::serve(listener, Arc::clone(&hub), options, stop.clone()).boxed());
        }
        if let Some(listener) = self.flight {
            doors.push(flight::serve(listener, hub, options.flight, stop.clone()).boxed());
        }
        let stop = &stop;
        let ended = join_all(doors.into_iter().map(|door| async move {
            let ended = door.await;
            // Half a hub would look like a whole one to whoever watches the other half.
            stop.cancel();
            ended
        }));
        ended.await.into_iter().collect()
    }
}

async fn bind(flag: &str, address: &str, cover: &Cover, limits: Limits) -> Result<Option<Listener>> {
    if address == OFF {
        return Ok(None);
    }
    let listener = Listener::bind(address, limits).await.map_err(|error| match error {
        Error::Usage(why) => Error::Usage(format!("{why}; name another address with {flag}, or {flag} none")),
        error => error,
    })?;
    if matches!(cover, Cover::Loopback) && !listener.local_addr()?.ip().is_loopback() {
        return Err(Error::Usage(format!(
            "{flag} {address}: without TLS everybody on the way could read tokens and answers; set --tls-certificate \
             and --tls-key, listen on 127.0.0.1, or set behind_proxy = true where TLS ends at a proxy before the hub"
        )));
    }
    Ok(Some(listener))
}

fn address(listener: Option<&Listener>) -> Result<Option<SocketAddr>> {
    listener.map(Listener::local_addr).transpose()
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
mod tests {
    use super::*;

    async fn refusal(http: &str, postgres: &str, flight: &str, cover: Cover) -> String {
        let bound = Doors::bind(Addresses { http, postgres, flight }, &cover, Limits::default()).await;
        match bound {
            Ok(_) => String::new(),
            Err(Error::Usage(why)) => why,
            Err(other) => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn doors_that_cannot_be_opened_are_a_wrong_usage() {
        let none = refusal(OFF, OFF, OFF, Cover::Loopback).await;
        assert!(none.contains("no door would be left"), "{none}");
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().to_string();
        let said = refusal(OFF, &taken, OFF, Cover::Loopback).await;
        assert!(said.contains(&format!("cannot listen on `{taken}`")), "{said}");
        assert!(said.ends_with("name another address with --postgres, or --postgres none"), "{said}");
        let said = refusal(OFF, OFF, &taken, Cover::Loopback).await;
        assert!(said.ends_with("name another address with --flight, or --flight none"), "{said}");
        drop(holder);
    }

    #[tokio::test]
    async fn tokens_do_not_travel_in_the_clear() {
        for door in 0..3 {
            let at = |number: usize| if number == door { "0.0.0.0:0" } else { OFF };
            let said = refusal(at(0), at(1), at(2), Cover::Loopback).await;
            assert!(said.contains("0.0.0.0:0: without TLS everybody on the way could read tokens"), "{said}");
            assert_eq!(refusal(at(0), at(1), at(2), Cover::Proxy).await, "");
        }
        assert_eq!(refusal("127.0.0.1:0", "127.0.0.1:0", OFF, Cover::Loopback).await, "");
    }
}
