//! The Postgres protocol by hand, for what no client would send: bytes go out as they are, messages come back as they
//! came.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long an answer, or an end, may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message of the server: its kind and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an error or notice, by its letter.
    pub fn field(&self, letter: u8) -> Option<String> {
        let mut fields = self.body.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&letter))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// The SQLSTATE of an error.
    pub fn code(&self) -> String {
        assert_eq!(self.kind, b'E', "{self:?}");
        self.field(b'C').unwrap()
    }
}

/// A connection.
pub struct Wire {
    stream: TcpStream,
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// A connection that was let in, with its number and secret.
    pub async fn let_in(address: SocketAddr, caller: &str, secret: &str, settings: &[(&str, &str)]) -> (Self, Vec<u8>) {
        let mut wire = Self::open(address).await;
        wire.send(&startup(caller, settings)).await;
        wire.send(&password(secret)).await;
        let greeting = wire.until_ready().await;
        let key = greeting.iter().find(|message| message.kind == b'K');
        let key = key.unwrap_or_else(|| panic!("not let in: {greeting:?}")).body.clone();
        (wire, key)
    }

    /// Sends bytes. What the other side no longer takes is lost.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Says that nothing more will come.
    pub async fn hang_up(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// One byte, as requests for encryption are answered; none at the end.
    pub async fn byte(&mut self) -> Option<u8> {
        timeout(PATIENCE, self.stream.read_u8()).await.expect("nothing came").ok()
    }

    /// The next message; none at the end.
    pub async fn message(&mut self) -> Option<Message> {
        let kind = self.byte().await?;
        let length = timeout(PATIENCE, self.stream.read_u32()).await.expect("nothing came").ok()?;
        let mut body = vec![0; length.checked_sub(4)? as usize];
        timeout(PATIENCE, self.stream.read_exact(&mut body)).await.expect("nothing came").ok()?;
        Some(Message { kind, body })
    }

    /// All messages up to the one that says that the server is ready, or up to the end.
    pub async fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            let is_ready = message.kind == b'Z';
            messages.push(message);
            if is_ready {
                break;
            }
        }
        messages
    }

    /// All that comes before the other side ends the connection, which it must.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Reset is an end, too.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut bytes)).await.expect("the connection stays open");
        bytes
    }

    /// What a statement of the simple protocol is answered with.
    pub async fn ask(&mut self, sql: &str) -> Vec<Message> {
        self.send(&query(sql)).await;
        self.until_ready().await
    }
}

/// A message with its kind and length.
pub fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// A text with the byte that ends it.
pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A first message of any version, with what follows.
pub fn first(version: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &version.to_be_bytes(), body].concat()
}

pub fn startup(caller: &str, settings: &[(&str, &str)]) -> Vec<u8> {
    let mut body = [text("user"), text(caller)].concat();
    for (name, value) in settings {
        body.extend([text(name), text(value)].concat());
    }
    body.push(0);
    first(196_608, &body)
}

pub fn password(secret: &str) -> Vec<u8> {
    framed(b'p', &text(secret))
}

pub fn query(sql: &str) -> Vec<u8> {
    framed(b'Q', &text(sql))
}

/// A statement to prepare, with the object ids of its parameters' types.
pub fn parse(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let count = u16::try_from(types.len()).unwrap().to_be_bytes();
    let types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
    framed(b'P', &[text(name), text(sql), count.to_vec(), types].concat())
}

/// Values bound to a statement, with the forms of the parameters and of the columns.
pub fn bind(portal: &str, name: &str, formats: &[u16], values: &[Option<&[u8]>], columns: &[u16]) -> Vec<u8> {
    let count = |length: usize| u16::try_from(length).unwrap().to_be_bytes().to_vec();
    let numbers = |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>();
    let mut body = [text(portal), text(name), count(formats.len()), numbers(formats), count(values.len())].concat();
    for value in values {
        match value {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                body.extend_from_slice(value);
            }
        }
    }
    body.extend([count(columns.len()), numbers(columns)].concat());
    framed(b'B', &body)
}

/// Asks what a statement (`S`) or portal (`P`) looks like.
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    framed(b'D', &[vec![kind], text(name)].concat())
}

pub fn execute(portal: &str, rows: u32) -> Vec<u8> {
    framed(b'E', &[text(portal), rows.to_be_bytes().to_vec()].concat())
}

/// Closes a statement (`S`) or portal (`P`).
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    framed(b'C', &[vec![kind], text(name)].concat())
}

pub fn sync() -> Vec<u8> {
    framed(b'S', &[])
}

pub fn terminate() -> Vec<u8> {
    framed(b'X', &[])
}

/// A request to cancel, with the number and secret of a connection.
pub fn cancel(key: &[u8]) -> Vec<u8> {
    first(80_877_102, key)
}

/// A request for TLS.
pub fn tls() -> Vec<u8> {
    first(80_877_103, &[])
}

/// A request for encryption by GSSAPI.
pub fn gss() -> Vec<u8> {
    first(80_877_104, &[])
}
