//! How the HTTP door is served: HTTP/1.1 and HTTP/2 over the connections of a [`Listener`], with limits on what peers
//! may leave open, and an end that lets running answers finish. Knows no route.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::listen::{Listener, Stream};
use crate::error::Result;

/// Bytes that are read ahead on a connection of HTTP/1.1, and with it the longest head of a request.
const READ_AHEAD: usize = 128 << 10;

/// Bytes of headers that a request of HTTP/2 may have.
const HEADERS: u32 = 32 << 10;

/// Requests at once on a connection of HTTP/2.
const STREAMS: u32 = 128;

/// How often a silent peer of HTTP/2 is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

/// How long it may take to say so.
const PONG: Duration = Duration::from_secs(20);

/// Serves until `stop`, then lets running requests finish, for as long as the listener's limits say. Whoever drops this
/// ends all connections.
///
/// # Errors
/// None for now: what the system is short of is waited out, and what goes wrong on a connection ends that one.
pub async fn serve(listener: Listener, router: Router, stop: CancellationToken) -> Result<()> {
    let limits = listener.limits();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.headers).max_buf_size(READ_AHEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let builder = Arc::new(builder);
    let graceful = GracefulShutdown::new();
    let over = CancellationToken::new();
    let _end = over.clone().drop_guard();
    let mut incoming = listener.at("http").incoming(stop);
    while let Some(stream) = incoming.next().await {
        let conversation = Conversation {
            builder: Arc::clone(&builder),
            router: router.clone(),
            watcher: graceful.watcher(),
            over: over.clone(),
            silence: limits.headers,
        };
        tokio::spawn(conversation.hold(stream));
    }
    // A client that never finishes its request does not keep the hub up.
    if timeout(limits.patience, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests that were still running are cut off");
    }
    Ok(())
}

/// One connection's share of what serves them all.
struct Conversation {
    builder: Arc<Builder<TokioExecutor>>,
    router: Router,
    watcher: Watcher,
    over: CancellationToken,
    silence: Duration,
}

impl Conversation {
    /// Answers the requests of a connection until one side has enough.
    async fn hold(self, stream: Stream) {
        let Self { builder, router, watcher, over, silence } = self;
        let peer = stream.peer().clone();
        let asked = Arc::new(AtomicBool::new(false));
        let service = {
            let asked = Arc::clone(&asked);
            service_fn(move |mut request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer.address));
                request.extensions_mut().insert(peer.clone());
                router.clone().oneshot(request)
            })
        };
        let mut conversation = pin!(watcher.watch(builder.serve_connection(TokioIo::new(stream), service)));
        // The time limit on headers begins once it is known which HTTP is spoken; until then this one holds.
        let never_asks = async {
            sleep(silence).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = &mut conversation => {
                if ended.is_err() {
                    // What a peer did wrong, or that it went away, is its own affair; the text may hold what it sent.
                    tracing::debug!("a connection broke off");
                }
            }
            () = never_asks => {}
            () = over.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Extension, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        task::JoinHandle,
    };

    use super::*;
    use crate::front::listen::{Limits, Peer};

    async fn slow() -> &'static str {
        sleep(Duration::from_millis(300)).await;
        "at last"
    }

    async fn who(Extension(peer): Extension<Peer>, ConnectInfo(address): ConnectInfo<SocketAddr>) -> String {
        format!("{} {}", peer.address == address, peer.secure)
    }

    async fn served(limits: Limits) -> (TcpStream, CancellationToken, JoinHandle<Result<()>>) {
        let listener = Listener::bind("127.0.0.1:0", limits).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/slow", get(slow)).route("/who", get(who));
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, router, stop.clone()));
        (TcpStream::connect(address).await.unwrap(), stop, server)
    }

    async fn ask(connection: &mut TcpStream, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: hub\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
    }

    async fn rest(mut connection: TcpStream) -> String {
        let mut said = Vec::new();
        let read = timeout(Duration::from_secs(10), connection.read_to_end(&mut said)).await;
        read.expect("the connection stays open").unwrap();
        String::from_utf8(said).unwrap()
    }

    #[tokio::test]
    async fn running_answers_are_finished_before_the_end() {
        let (mut connection, stop, server) = served(Limits::default()).await;
        ask(&mut connection, "/slow").await;
        sleep(Duration::from_millis(100)).await;
        stop.cancel();
        let said = rest(connection).await;
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("at last"), "{said}");
        timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_does_not_end_its_request_does_not_keep_the_hub_up() {
        let limits = Limits { patience: Duration::from_millis(200), ..Limits::default() };
        let (mut connection, stop, server) = served(limits).await;
        connection.write_all(b"GET /slow HTTP/1.1\r\nhost:").await.unwrap();
        sleep(Duration::from_millis(50)).await;
        stop.cancel();
        timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
        assert!(!rest(connection).await.contains("200 OK"));
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_a_word_is_left() {
        let limits = Limits { headers: Duration::from_millis(200), ..Limits::default() };
        for begun in ["", "P", "GET /slow HTTP/1.1\r\nhost:"] {
            let (mut connection, _stop, _server) = served(limits).await;
            connection.write_all(begun.as_bytes()).await.unwrap();
            let said = rest(connection).await;
            assert!(!said.contains("200 OK"), "{begun}: {said}");
        }
    }

    #[tokio::test]
    async fn requests_know_their_peer() {
        let (mut connection, stop, _server) = served(Limits::default()).await;
        ask(&mut connection, "/who").await;
        sleep(Duration::from_millis(100)).await;
        stop.cancel();
        assert!(rest(connection).await.ends_with("true false"));
    }
}
