//! Listening, the same for every door: how many connections there may be, how long a handshake may take, and who is at
//! the other end. Knows no protocol.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{
    figures::{self, Connection},
    origins::{Origin, Origins},
    tls::Tls,
};
use crate::error::{Error, Result};

/// The first pause after the system gave no connection; each further one is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The longest pause after the system gave no connection.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often the log says that the system gives no connections.
const COMPLAINT: Duration = Duration::from_secs(5);

/// Connections that are through their handshake and wait to be taken up.
const WAITING: usize = 16;

/// What connections of one door may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait until one ends.
    pub connections: usize,
    /// Connections at once from one address, which for IPv6 is a network of 64 bits; further ones are closed at once.
    /// Zero is as many as there may be.
    pub per_address: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a peer may take to say what it wants: the headers of a request, also those of the next one.
    pub headers: Duration,
    /// How long a peer may take nothing of what it is sent: its answer lies in memory until then.
    pub unread: Duration,
    /// How long running requests may take once the hub was asked to stop.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_024,
            per_address: 512,
            handshake: Duration::from_secs(10),
            // Proxies and drivers keep idle connections about as long; a shorter time would cut them in mid-request.
            headers: Duration::from_secs(30),
            unread: Duration::from_secs(60),
            patience: Duration::from_secs(10),
        }
    }
}

/// Who is at the other end of a connection. In the extensions of every HTTP and gRPC request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether nobody in between can listen: the connection is one of TLS.
    pub secure: bool,
    /// The certificate it showed, signed by a root that the hub trusts for this and in force at the handshake.
    pub certificate: Option<CertificateDer<'static>>,
}

/// The place of a connection among those there may be, and in the figures of its door; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _room: Option<OwnedSemaphorePermit>,
    _origin: Origin,
    _open: Option<Connection>,
}

/// A connection before any handshake, where it comes from, and its place among those there may be.
pub type Accepted = (TcpStream, SocketAddr, Permit);

/// A listening socket with its limits.
pub struct Listener {
    socket: TcpListener,
    door: Option<&'static str>,
    limits: Limits,
    room: Arc<Semaphore>,
    origins: Arc<Origins>,
    tls: Option<Tls>,
    protocols: Vec<Vec<u8>>,
    complained: Mutex<Option<Instant>>,
}

impl Listener {
    /// Listens on an address, `HOST:PORT`; port 0 is one that the system chooses.
    ///
    /// # Errors
    /// [`Error::Usage`] where it cannot.
    pub async fn bind(address: &str, limits: Limits) -> Result<Self> {
        let socket = TcpListener::bind(address).await;
        let socket = socket.map_err(|e| Error::Usage(format!("cannot listen on `{address}`: {e}")))?;
        Ok(Self::from(socket, limits))
    }

    /// A socket that listens already.
    pub fn from(socket: TcpListener, limits: Limits) -> Self {
        let room = Arc::new(Semaphore::new(limits.connections));
        let origins = Origins::new(limits.per_address);
        let (door, tls, protocols, complained) = (None, None, Vec::new(), Mutex::default());
        Self { socket, door, limits, room, origins, tls, protocols, complained }
    }

    /// The same for a door by that name, in whose figures its connections are counted.
    #[must_use]
    pub fn at(self, door: &'static str) -> Self {
        Self { door: Some(door), ..self }
    }

    /// The same with TLS, for these protocols above it (by ALPN); plain where there is none.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>, protocols: &[&[u8]]) -> Self {
        Self { tls, protocols: protocols.iter().map(|protocol| protocol.to_vec()).collect(), ..self }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Only a fault of the system.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.socket.local_addr().map_err(Error::internal)
    }

    /// What its connections may take.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// TLS, where it is spoken: for protocols that begin it in their own words.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The next connection, before any handshake. Waits until there is room for it, and waits out what the system may
    /// be short of, such as open files. Those of an address that has enough are closed meanwhile. May be dropped while
    /// it waits; nothing is lost.
    pub async fn accept(&self) -> Accepted {
        // Nobody closes the semaphore, so there always is a permit in the end.
        let room = Arc::clone(&self.room).acquire_owned().await.ok();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.socket.accept().await {
                Ok((stream, address)) => {
                    let Some(origin) = self.origins.admit(address.ip()) else {
                        // Kept waiting it would be in the way of others: which of them waits is the system's to say.
                        if let Some(door) = self.door {
                            figures::turned_away(door);
                        }
                        continue;
                    };
                    // Small answers go out at once. Where that cannot be had they come a little later.
                    let _ = stream.set_nodelay(true);
                    let open = self.door.map(Connection::new);
                    return (stream, address, Permit { _room: room, _origin: origin, _open: open });
                }
                Err(error) if is_over_already(&error) => {}
                Err(error) => {
                    self.complain(&error);
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// The connections one after the other, through their TLS handshake where there is one, until `stop`. Those that
    /// fail their handshake do not come up.
    pub fn incoming(self, stop: CancellationToken) -> Incoming {
        let (arrived, arrivals) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let (stream, address, permit) = tokio::select! {
                    () = stop.cancelled() => break,
                    () = arrived.closed() => break,
                    accepted = self.accept() => accepted,
                };
                let Some(acceptor) = self.acceptor() else {
                    let plain = Stream::plain(stream, address, permit, self.limits.unread);
                    tokio::select! {
                        () = stop.cancelled() => break,
                        _ = arrived.send(plain) => {}
                    }
                    continue;
                };
                let (arrived, stop, limits) = (arrived.clone(), stop.clone(), self.limits);
                tokio::spawn(async move {
                    let shaking = Stream::secure(stream, address, permit, limits.unread, &acceptor);
                    tokio::select! {
                        () = stop.cancelled() => {}
                        shaken = timeout(limits.handshake, shaking) => match shaken {
                            // Where nobody takes it up any more, it is closed.
                            Ok(Ok(stream)) => drop(arrived.send(stream).await),
                            // What peers sent does not belong into the log, and scanners send a lot.
                            Ok(Err(error)) => tracing::debug!(kind = %error.kind(), "a TLS handshake failed"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        },
                    }
                });
            }
            // First of all, so that who hears of the end finds nobody listening.
            drop(self);
        });
        Incoming(arrivals)
    }

    fn acceptor(&self) -> Option<TlsAcceptor> {
        let protocols: Vec<_> = self.protocols.iter().map(Vec::as_slice).collect();
        self.tls.as_ref().map(|tls| tls.acceptor(&protocols))
    }

    fn complain(&self, error: &io::Error) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_some_and(|last| last.elapsed() < COMPLAINT) {
            return;
        }
        *complained = Some(Instant::now());
        tracing::error!(%error, "the system gives no connections; new ones wait");
    }
}

/// Whether the connection was over before it was taken, which is no fault of the listener.
fn is_over_already(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}

/// Connections as they come, as a stream too. Once it is dropped nobody is let in any more.
pub struct Incoming(mpsc::Receiver<Stream>);

impl Incoming {
    /// The next connection; nothing once the listener was stopped and all that came before were taken.
    pub async fn next(&mut self) -> Option<Stream> {
        self.0.recv().await
    }
}

impl futures::Stream for Incoming {
    type Item = io::Result<Stream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_recv(context).map(|arrived| arrived.map(Ok))
    }
}

/// A connection that is ready to be spoken on. Its place among the connections is given back when it is dropped. Writing
/// fails once the peer has taken nothing for too long.
pub struct Stream {
    socket: Socket,
    peer: Peer,
    unread: Duration,
    /// Runs out while the peer takes nothing.
    stuck: Option<Pin<Box<Sleep>>>,
    _permit: Permit,
}

enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// A connection without TLS, whose peer may take nothing for as long as `unread`.
    pub fn plain(stream: TcpStream, address: SocketAddr, permit: Permit, unread: Duration) -> Self {
        let peer = Peer { address, secure: false, certificate: None };
        Self { socket: Socket::Plain(stream), peer, unread, stuck: None, _permit: permit }
    }

    /// A connection after its TLS handshake, which this waits for.
    ///
    /// # Errors
    /// Why the handshake failed.
    pub async fn secure(
        stream: TcpStream,
        address: SocketAddr,
        permit: Permit,
        unread: Duration,
        acceptor: &TlsAcceptor,
    ) -> io::Result<Self> {
        let stream = acceptor.accept(stream).await?;
        let certificate = certificate_shown(&stream);
        let peer = Peer { address, secure: true, certificate };
        Ok(Self { socket: Socket::Tls(Box::new(stream)), peer, unread, stuck: None, _permit: permit })
    }

    /// Who is at its other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What came of writing, and that it failed where nothing came of it for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let unread = self.unread;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(unread)));
        stuck.as_mut().poll(context).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

/// The certificate that a client showed in its handshake.
pub fn certificate_shown<S>(stream: &TlsStream<S>) -> Option<CertificateDer<'static>> {
    let (_, session) = stream.get_ref();
    Some(session.peer_certificates()?.first()?.clone().into_owned())
}

impl Connected for Stream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let written = match &mut stream.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Tls(socket) => Pin::new(socket).poll_write(context, bytes),
        };
        stream.in_time(context, written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let flushed = match &mut stream.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_flush(context),
            Socket::Tls(socket) => Pin::new(socket).poll_flush(context),
        };
        stream.in_time(context, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let shut = match &mut stream.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tls(socket) => Pin::new(socket).poll_shutdown(context),
        };
        stream.in_time(context, shut)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let written = match &mut stream.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Socket::Tls(socket) => Pin::new(socket).poll_write_vectored(context, slices),
        };
        stream.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(socket) => socket.is_write_vectored(),
            Socket::Tls(socket) => socket.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;

    async fn listener(connections: usize) -> (Listener, SocketAddr) {
        let limits = Limits { connections, ..Limits::default() };
        let listener = Listener::bind("127.0.0.1:0", limits).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn beyond_the_limit_connections_wait_for_one_to_end() {
        let (listener, address) = listener(1).await;
        let mut incoming = listener.incoming(CancellationToken::new());
        let (mut first, mut second) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        first.write_all(b"1").await.unwrap();
        second.write_all(b"2").await.unwrap();
        let mut taken = incoming.next().await.unwrap();
        assert_eq!(taken.peer().address, first.local_addr().unwrap());
        assert!(!taken.peer().secure && taken.peer().certificate.is_none());
        let mut byte = [0];
        taken.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"1");
        let early = timeout(Duration::from_millis(100), incoming.next()).await;
        assert!(early.is_err(), "two connections where one may be");
        drop(taken);
        let mut taken = timeout(Duration::from_secs(10), incoming.next()).await.unwrap().unwrap();
        taken.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"2");
    }

    #[tokio::test]
    async fn one_address_does_not_get_all_connections() {
        let recorder = figures::builder().build_recorder();
        let counting = metrics::set_default_local_recorder(&recorder);
        let limits = Limits { connections: 3, per_address: 2, ..Limits::default() };
        let listener = Listener::bind("127.0.0.1:0", limits).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = listener.at("postgres").incoming(CancellationToken::new());
        let soon = Duration::from_secs(10);
        let _clients = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (first, _second) = (incoming.next().await.unwrap(), incoming.next().await.unwrap());
        let mut third = TcpStream::connect(address).await.unwrap();
        let read = timeout(soon, third.read(&mut [0])).await.expect("it is kept waiting");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        // Whoever comes from elsewhere does not wait for it.
        let elsewhere = TcpSocket::new_v4().unwrap();
        elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let elsewhere = elsewhere.connect(address).await.unwrap();
        let taken = timeout(soon, incoming.next()).await.unwrap().unwrap();
        assert_eq!(taken.peer().address, elsewhere.local_addr().unwrap());
        drop(first);
        let again = TcpStream::connect(address).await.unwrap();
        let taken = timeout(soon, incoming.next()).await.unwrap().unwrap();
        assert_eq!(taken.peer().address, again.local_addr().unwrap());
        let text = recorder.handle().render();
        assert!(text.contains("gridhub_connections_turned_away_total{door=\"postgres\"} 1\n"), "{text}");
        drop(counting);
    }

    #[tokio::test]
    async fn connections_are_counted_at_their_door() {
        let recorder = figures::builder().build_recorder();
        let counting = metrics::set_default_local_recorder(&recorder);
        let counted = |open: u8| {
            let text = recorder.handle().render();
            text.contains(&format!("gridhub_connections{{door=\"flight\"}} {open}\n"))
        };
        let (listener, address) = listener(8).await;
        let mut incoming = listener.at("flight").incoming(CancellationToken::new());
        let _client = TcpStream::connect(address).await.unwrap();
        let taken = incoming.next().await.unwrap();
        assert!(counted(1));
        drop(taken);
        assert!(counted(0));
        drop(counting);
    }

    #[tokio::test]
    async fn who_takes_nothing_of_its_answer_is_left() {
        let limits = Limits { unread: Duration::from_millis(500), ..Limits::default() };
        let listener = Listener::bind("127.0.0.1:0", limits).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = listener.incoming(CancellationToken::new());
        let _reads_nothing = TcpStream::connect(address).await.unwrap();
        let mut taken = incoming.next().await.unwrap();
        let answer = vec![0; 64 << 20];
        let sent = timeout(Duration::from_secs(30), taken.write_all(&answer)).await.unwrap();
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::TimedOut);

        // Who reads slowly is sent all of it.
        let mut reads_slowly = TcpStream::connect(address).await.unwrap();
        let mut taken = incoming.next().await.unwrap();
        let reading = tokio::spawn(async move {
            let (mut came, mut piece) = (0, vec![0; 8 << 20]);
            while came < 64 << 20 {
                sleep(Duration::from_millis(20)).await;
                came += reads_slowly.read(&mut piece).await.unwrap();
            }
        });
        timeout(Duration::from_secs(60), taken.write_all(&answer)).await.unwrap().unwrap();
        reading.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_comes_after_the_stop() {
        let (listener, address) = listener(8).await;
        let stop = CancellationToken::new();
        let mut incoming = listener.incoming(stop.clone());
        let _client = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.is_some());
        stop.cancel();
        assert!(timeout(Duration::from_secs(10), incoming.next()).await.unwrap().is_none());
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_address_in_use_is_a_wrong_usage() {
        let (_listener, address) = listener(1).await;
        let refused = Listener::bind(&address.to_string(), Limits::default()).await.err().unwrap();
        assert!(matches!(&refused, Error::Usage(why) if why.contains(&format!("cannot listen on `{address}`"))));
    }
}
