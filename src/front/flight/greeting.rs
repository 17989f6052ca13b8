//! How long a connection may take to begin. HTTP/2 asks silent peers whether they are still there, but only those that
//! have begun it; who sends nothing at all would keep its place for ever.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use crate::front::listen::{Peer, Stream};

/// Bytes with which every client of HTTP/2 begins.
const GREETING: usize = 24;

/// A connection that has to begin in time.
pub(super) struct Greeted {
    stream: Stream,
    /// What is still to come of the greeting, and until when; nothing once it came.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Greeted {
    /// A connection that has `patience` to begin.
    pub(super) fn new(stream: Stream, patience: Duration) -> Self {
        Self { stream, awaited: Some((GREETING, Box::pin(sleep(patience)))) }
    }
}

impl Connected for Greeted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.stream.connect_info()
    }
}

impl AsyncRead for Greeted {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, awaited } = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        let Some((missing, end)) = awaited else { return read };
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            *awaited = None;
            return read;
        }
        match read.is_pending() && end.as_mut().poll(context).is_ready() {
            true => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            false => read,
        }
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::front::listen::{Limits, Listener};

    #[tokio::test]
    async fn who_does_not_begin_in_time_is_cut_off_and_who_has_begun_is_not() {
        let listener = Listener::bind("127.0.0.1:0", Limits::default()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = listener.incoming(CancellationToken::new());
        for (sent, begun) in [(0, false), (GREETING - 1, false), (GREETING, true)] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&vec![b'P'; sent]).await.unwrap();
            let mut greeted = Greeted::new(incoming.next().await.unwrap(), Duration::from_millis(200));
            let mut came = Vec::new();
            let ended = timeout(Duration::from_secs(1), greeted.read_to_end(&mut came)).await;
            assert_eq!(came.len(), sent);
            match ended {
                Ok(ended) => assert!(!begun && ended.unwrap_err().kind() == ErrorKind::TimedOut, "{sent} bytes"),
                Err(_) => assert!(begun, "{sent} bytes"),
            }
        }
    }
}
