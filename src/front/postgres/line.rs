//! The line to a client, plain or encrypted: whether the client is still there, and whether it takes what it is sent.
//! Knows nothing of messages.

use std::{
    io::{self, ErrorKind},
    net::{self, Shutdown},
    os::fd::AsFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

/// How often it is looked whether a client is still there.
const LOOK: Duration = Duration::from_millis(250);

/// A line over which messages go.
pub(super) enum Line {
    /// What goes over it can be read by others.
    Plain(Wire),
    /// What goes over it cannot.
    Tls(Box<TlsStream<Wire>>),
}

/// A connection that fails where its other end takes nothing for too long.
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    unread: Duration,
    /// The end of the patience, since nothing is taken any more.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// The same connection, for who looks whether its other end is still there.
pub(super) struct Watch(Arc<TcpStream>);

impl Wire {
    /// A connection whose other end may for so long take nothing of what it is sent.
    pub(super) fn new(stream: TcpStream, unread: Duration) -> Self {
        Self { stream: Arc::new(stream), unread, stalled: None }
    }

    /// What looks whether the other end is still there, also while nobody reads what it says.
    pub(super) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.stream))
    }

    /// Waits for room, but not for ever.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let unread = self.unread;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(unread)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl Watch {
    /// Ends once the other end has hung up or is lost; not before a moment has passed, so that it costs short
    /// statements nothing. Reads nothing. May be dropped while it waits.
    pub(super) async fn gone(&self) {
        loop {
            sleep(LOOK).await;
            match self.0.ready(Interest::READABLE).await {
                // Messages that wait to be read hide no end that comes after them.
                Ok(ready) if !ready.is_read_closed() => {}
                _ => return,
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        loop {
            match wire.stream.poll_write_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return wire.wait(context),
            }
            match wire.stream.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => {
                    wire.stalled = None;
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The runtime shuts down what is not shared only; the end of a copy is the end of the connection.
        let copy = self.stream.as_fd().try_clone_to_owned().map(net::TcpStream::from);
        Poll::Ready(copy.and_then(|copy| copy.shutdown(Shutdown::Write)))
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(20);

    async fn pair(unread: Duration) -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Wire::new(listener.accept().await.unwrap().0, unread), client)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_come_to_an_end() {
        let (mut wire, mut client) = pair(LONG).await;
        client.write_all(b"asked").await.unwrap();
        let mut read = [0; 5];
        wire.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"asked");
        wire.write_all(b"answered").await.unwrap();
        wire.shutdown().await.unwrap();
        let mut said = Vec::new();
        timeout(LONG, client.read_to_end(&mut said)).await.expect("it does not end").unwrap();
        assert_eq!(said, b"answered");
    }

    #[tokio::test]
    async fn who_takes_nothing_is_waited_for_a_while() {
        let (mut wire, _client) = pair(Duration::from_millis(200)).await;
        let piece = vec![0; 1 << 20];
        let stalled = timeout(LONG, async {
            loop {
                if let Err(error) = wire.write_all(&piece).await {
                    return error.kind();
                }
            }
        });
        assert_eq!(stalled.await.expect("it waits for ever"), ErrorKind::TimedOut);
        // Who reads on, however much there is, is not.
        let (mut wire, mut client) = pair(Duration::from_millis(200)).await;
        let reading = tokio::spawn(async move { client.read_to_end(&mut Vec::new()).await });
        for _ in 0..32 {
            wire.write_all(&piece).await.unwrap();
        }
        drop(wire);
        assert_eq!(reading.await.unwrap().unwrap(), 32 << 20);
    }

    #[tokio::test]
    async fn who_hangs_up_is_missed_behind_what_it_said() {
        let (wire, mut client) = pair(LONG).await;
        let watch = wire.watch();
        client.write_all(b"not read yet").await.unwrap();
        assert!(timeout(LOOK * 3, watch.gone()).await.is_err(), "it is still there");
        drop(client);
        timeout(LONG, watch.gone()).await.expect("nobody missed it");
    }
}
