//! One connection from its first byte to its last: encryption, then message after message. Knows what a message is, and
//! not what is in it.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use futures::SinkExt;
use pgwire::{
    api::{ClientInfo, DefaultClient, NoopHandler, PgWireConnectionState, query::ExtendedQueryHandler},
    error::{PgWireError, PgWireResult},
    messages::{PgWireBackendMessage, PgWireFrontendMessage, response::ReadyForQuery},
    tokio::server::{PgWireMessageServerCodec, process_message},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::{
    codec::{Decoder, Framed, FramedParts},
    sync::CancellationToken,
};

use super::{
    Door,
    error::{self, fatal},
    extended::Extended,
    form,
    line::{Line, Watch, Wire},
    session::Session,
    simple::Simple,
    startup::Entrance,
    statements::fault,
};
use crate::front::{listen::certificate_shown, tls::Tls};

/// The name of the protocol inside of TLS (ALPN).
const ALPN: &[u8] = b"postgresql";

/// The first byte of a TLS handshake, with which newer clients begin at once.
const HANDSHAKE: u8 = 0x16;

/// Numbers that stand where a start-up packet has its version: requests for encryption.
const TLS_REQUEST: [u8; 4] = 80_877_103_i32.to_be_bytes();
const GSS_REQUEST: [u8; 4] = 80_877_104_i32.to_be_bytes();

/// The longest message before the caller is known, in bytes, as in PostgreSQL.
const LONGEST_GREETING: usize = 10_000;

/// The longest message, in bytes: questions are short, as at the HTTP door.
const LONGEST: usize = 1 << 20;

/// The kind of message that is an exchange of its own: a text of statements.
const QUERY: u8 = b'Q';

/// How much is read at once, in bytes.
const READ: usize = 8 << 10;

type Statement = <Extended as ExtendedQueryHandler>::Statement;
type Socket = Framed<Line, PgWireMessageServerCodec<Statement>>;

/// A connection of which it is settled whether others can read it.
struct Opened {
    socket: Socket,
    watch: Watch,
    /// The certificate that the client showed.
    certificate: Option<CertificateDer<'static>>,
    /// What a login over it can be bound to.
    end_point: Option<Vec<u8>>,
}

/// Serves a connection until either side ends it.
pub(super) async fn run(stream: TcpStream, address: SocketAddr, door: &Arc<Door>, stop: &CancellationToken) {
    let until = Instant::now() + door.options.startup;
    // Who does not get as far as a first message has nothing to be told.
    let opened = tokio::select! {
        () = stop.cancelled() => return,
        opened = timeout_at(until, open(stream, address, door)) => opened,
    };
    let Ok(Ok(Some(Opened { mut socket, watch, certificate, end_point }))) = opened else { return };
    let entrance = Arc::new(Entrance::new(Arc::clone(door), certificate, end_point));
    let (simple, extended, copy) = (Arc::new(Simple), Arc::new(Extended), Arc::new(NoopHandler));
    // Between the messages of one exchange its end is waited for.
    let mut at_rest = true;
    loop {
        let let_in = socket.session_extensions().get::<Session>();
        let message = tokio::select! {
            biased;
            () = stop.cancelled(), if at_rest => {
                farewell(&mut socket, fatal("57P01", "the hub is stopping; connect again in a moment")).await;
                return;
            }
            () = sleep_until(until), if let_in.is_none() => return,
            message = hear(&mut socket) => message,
        };
        let message = match (message, &let_in) {
            (Ok(Some(Heard::Message(PgWireFrontendMessage::Terminate(_))) | None), _) => return,
            (Ok(Some(Heard::Message(message))), _) => message,
            // What comes before the end of an exchange that failed is passed over, whatever it is.
            (Ok(Some(Heard::Garbled(_))), Some(_)) if matches!(socket.state(), PgWireConnectionState::AwaitingSync) => {
                continue;
            }
            (Ok(Some(Heard::Garbled(kind))), Some(session)) => {
                let garbled = fault("22021", "invalid byte sequence for encoding \"UTF8\"");
                at_rest = kind == QUERY;
                match tell_error(&mut socket, session, garbled, !at_rest).await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            (Ok(Some(Heard::Garbled(_))), None) => {
                farewell(&mut socket, unreadable()).await;
                return;
            }
            (Err(error), _) => {
                farewell(&mut socket, error::ending(error)).await;
                return;
            }
        };
        let is_cancel = matches!(message, PgWireFrontendMessage::CancelRequest(_));
        let is_statement = matches!(message, PgWireFrontendMessage::Query(_) | PgWireFrontendMessage::Execute(_));
        let is_extended = message.is_extended_query();
        at_rest = !is_extended || matches!(message, PgWireFrontendMessage::Sync(_));
        if let Some(session) = &let_in {
            socket.set_transaction_status(session.status());
            session.begin_another();
            // Also what is answered without the hub, such as rows of a cursor, is for callers that are still let in.
            if is_statement && let Err(cause) = session.look_up() {
                farewell(&mut socket, error::ending(error::error(&cause))).await;
                return;
            }
        }
        let done = {
            // Boxed, since it holds the futures of all handlers, and every connection has one.
            let mut handled = Box::pin(process_message(
                message,
                &mut socket,
                Arc::clone(&entrance),
                Arc::clone(&simple),
                Arc::clone(&extended),
                Arc::clone(&copy),
                Arc::clone(&door.registry),
            ));
            loop {
                tokio::select! {
                    biased;
                    done = &mut handled => break done,
                    // Nobody waits for the answer any more, nor for those to the statements that follow.
                    () = watch.gone() => {
                        if let Some(session) = &let_in {
                            session.stop();
                        }
                    }
                }
            }
        };
        if is_cancel {
            return;
        }
        let settled = match (done, let_in) {
            (Ok(()), _) => Ok(()),
            (Err(error), Some(session)) => tell_error(&mut socket, &session, error, is_extended).await,
            // Nobody goes on who was not let in.
            (Err(error), None) => {
                farewell(&mut socket, error::ending(error)).await;
                return;
            }
        };
        if settled.is_err() {
            return;
        }
    }
}

/// Settles whether the connection is encrypted. No more is read than belongs to it: what somebody put behind a request
/// for encryption must not pass for what came encrypted.
async fn open(mut stream: TcpStream, address: SocketAddr, door: &Door) -> io::Result<Option<Opened>> {
    let tls = door.options.tls.as_ref();
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first == [HANDSHAKE] {
        let Some(tls) = tls else { return Ok(None) };
        let opened = encrypted(stream, address, tls, door).await?;
        // Who begins so must say which protocol it means: it could be led here from another one.
        let named = match opened.socket.get_ref() {
            Line::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(ALPN),
            Line::Plain(_) => false,
        };
        return Ok(named.then_some(opened));
    }
    // One request for each kind of encryption, and then the start-up packet.
    for _ in 0..3 {
        let mut head = [0; 8];
        stream.read_exact(&mut head).await?;
        match (head.last_chunk::<4>(), tls) {
            (Some(&TLS_REQUEST), Some(tls)) => {
                stream.write_all(b"S").await?;
                return encrypted(stream, address, tls, door).await.map(Some);
            }
            (Some(&TLS_REQUEST | &GSS_REQUEST), _) => stream.write_all(b"N").await?,
            _ => {
                let client = DefaultClient::new(address, false);
                let wire = Wire::new(stream, door.options.unread);
                let watch = wire.watch();
                let socket = framed(Line::Plain(wire), client, &head);
                return Ok(Some(Opened { socket, watch, certificate: None, end_point: None }));
            }
        }
    }
    Ok(None)
}

async fn encrypted(stream: TcpStream, address: SocketAddr, tls: &Tls, door: &Door) -> io::Result<Opened> {
    let wire = Wire::new(stream, door.options.unread);
    let watch = wire.watch();
    let (acceptor, end_point) = tls.bindable_acceptor(&[ALPN]);
    let stream = acceptor.accept(wire).await?;
    let certificate = certificate_shown(&stream);
    let client = DefaultClient::new(address, true);
    let socket = framed(Line::Tls(Box::new(stream)), client, &[]);
    Ok(Opened { socket, watch, certificate, end_point })
}

fn framed(line: Line, client: DefaultClient<Statement>, read: &[u8]) -> Socket {
    let mut parts = FramedParts::new::<PgWireBackendMessage>(line, PgWireMessageServerCodec::new(client));
    parts.read_buf = BytesMut::from(read);
    let mut socket = Framed::from_parts(parts);
    socket.set_state(PgWireConnectionState::AwaitingStartup);
    socket
}

/// What a client says.
enum Heard {
    /// A message.
    Message(PgWireFrontendMessage),
    /// A message of that kind whose texts are not UTF-8.
    Garbled(u8),
}

/// The next message; none where the client went away. Whoever drops this while it waits must not go on reading.
async fn hear(socket: &mut Socket) -> PgWireResult<Option<Heard>> {
    loop {
        let (skipped, longest) = match socket.state() {
            PgWireConnectionState::AwaitingStartup => (0, LONGEST_GREETING),
            PgWireConnectionState::AuthenticationInProgress => (1, LONGEST_GREETING),
            _ => (1, LONGEST),
        };
        let mut buffer = std::mem::take(socket.read_buffer_mut());
        if let Some(length) = whole(&buffer, skipped, longest)? {
            let mut one = buffer.split_to(length);
            *socket.read_buffer_mut() = buffer;
            // INVARIANT: the library's reader sees one message, whose parts are those that it says it has.
            if skipped == 1 && !form::is_well_formed(one[0], &one[5..]) {
                return Err(unreadable());
            }
            if skipped == 1 && !form::is_utf8(one[0], &one[5..]) {
                return Ok(Some(Heard::Garbled(one[0])));
            }
            let message = socket.codec_mut().decode(&mut one)?.ok_or_else(unreadable)?;
            return Ok(Some(Heard::Message(message)));
        }
        buffer.reserve(READ);
        // A connection that broke is over, however it ended.
        let read = socket.get_mut().read_buf(&mut buffer).await.unwrap_or(0);
        *socket.read_buffer_mut() = buffer;
        if read == 0 {
            return Ok(None);
        }
    }
}

/// How many bytes the first message takes, if it has come to its end. Its length stands at its beginning, after a byte
/// for its kind except in the first one.
fn whole(buffer: &[u8], skipped: usize, longest: usize) -> PgWireResult<Option<usize>> {
    let Some(length) = buffer.get(skipped..).and_then(|rest| rest.first_chunk::<4>()) else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    // The length counts itself, and in the first message a version.
    let shortest = if skipped == 0 { 8 } else { 4 };
    if length < shortest {
        return Err(unreadable());
    }
    if length > longest {
        return Err(error::fatal_with_hint("54000", "the message is too long", "messages may be 1 MiB long"));
    }
    Ok((buffer.len() - skipped >= length).then_some(skipped + length))
}

fn unreadable() -> PgWireError {
    fatal("08P01", "the message cannot be read")
}

/// Tells why a message came to nothing, and goes on where the protocol does: after it, or after the exchange it is part
/// of.
async fn tell_error(socket: &mut Socket, session: &Session, error: PgWireError, is_extended: bool) -> io::Result<()> {
    session.failed();
    let info = error::sent(error);
    if info.is_fatal() {
        farewell(socket, PgWireError::UserError(Box::new(info))).await;
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    socket.feed(PgWireBackendMessage::ErrorResponse(info.into())).await?;
    let status = session.status();
    socket.set_transaction_status(status);
    if is_extended {
        socket.set_state(PgWireConnectionState::AwaitingSync);
    } else {
        socket.set_state(PgWireConnectionState::ReadyForQuery);
        socket.feed(PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(status))).await?;
    }
    socket.flush().await
}

/// The last message of a connection. Whether it arrives is the client's affair.
async fn farewell(socket: &mut Socket, error: PgWireError) {
    if matches!(error, PgWireError::IoError(_)) {
        return;
    }
    let _ = socket.send(PgWireBackendMessage::ErrorResponse(error::sent(error).into())).await;
    let _ = socket.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &[u8], length: u32, body: usize) -> Vec<u8> {
        [kind, &length.to_be_bytes(), &vec![0_u8; body]].concat()
    }

    #[test]
    fn messages_are_whole_when_all_of_them_came() {
        assert!(whole(&message(b"Q", 9, 5), 1, LONGEST).unwrap().is_some());
        assert!(whole(&message(b"Q", 9, 50), 1, LONGEST).unwrap().is_some());
        assert!(whole(&message(b"Q", 9, 4), 1, LONGEST).unwrap().is_none());
        assert!(whole(b"Q\0\0", 1, LONGEST).unwrap().is_none());
        assert!(whole(b"", 1, LONGEST).unwrap().is_none());
        assert!(whole(&message(b"", 9, 5), 0, LONGEST_GREETING).unwrap().is_some());
    }

    #[test]
    fn lengths_that_cannot_be_end_the_connection() {
        for length in [0, 3, 2 << 20, u32::MAX] {
            assert!(whole(&message(b"Q", length, 5), 1, LONGEST).is_err(), "{length}");
        }
        for length in [4, 7, 10_001] {
            assert!(whole(&message(b"", length, 5), 0, LONGEST_GREETING).is_err(), "{length}");
        }
    }
}
