//! No address has so many connections that none are left for others, at whichever door.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gridhub::front::{
    flight, http,
    listen::{Limits, Listener},
    postgres,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{TestClock, TestHub};

/// A door of four connections, two for each address: room is left whoever is turned away.
async fn listener() -> (Listener, SocketAddr) {
    let limits = Limits { connections: 4, per_address: 2, ..Limits::default() };
    let listener = Listener::bind("127.0.0.1:0", limits).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn come_from(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the door closes a connection right away. What it may say at first is passed over.
async fn is_turned_away(connection: &mut TcpStream) -> bool {
    let closed = async {
        let mut said = [0; 1_024];
        while let Ok(1..) = connection.read(&mut said).await {}
    };
    timeout(Duration::from_millis(500), closed).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_takes_all_connections_of_a_door() {
    let city = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |_| {}).await;
    let hub = city.hub.as_ref().unwrap();
    let stop = CancellationToken::new();
    let [(by_http, http), (by_postgres, postgres), (by_flight, flight)] =
        [listener().await, listener().await, listener().await];
    let router = http::router(Arc::clone(hub), http::Options::default());
    let doors = vec![
        tokio::spawn(http::serve(by_http, router, stop.clone())),
        tokio::spawn(postgres::serve(by_postgres, Arc::clone(hub), postgres::Options::default(), stop.clone())),
        tokio::spawn(flight::serve(by_flight, Arc::clone(hub), flight::Options::default(), stop.clone())),
    ];
    for (name, door) in [("http", http), ("postgres", postgres), ("flight", flight)] {
        let mut first = come_from("127.0.0.1:0", door).await;
        let mut second = come_from("127.0.0.1:0", door).await;
        let mut third = come_from("127.0.0.1:0", door).await;
        assert!(is_turned_away(&mut third).await, "{name}");
        let mut other = come_from("127.0.0.2:0", door).await;
        for let_in in [&mut first, &mut second, &mut other] {
            assert!(!is_turned_away(let_in).await, "{name}");
        }
        // As one goes, another of the same address is let in.
        drop(first);
        let begun = Instant::now();
        while is_turned_away(&mut come_from("127.0.0.1:0", door).await).await {
            assert!(begun.elapsed() < Duration::from_secs(10), "{name}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    stop.cancel();
    for door in doors {
        door.abort();
    }
}
