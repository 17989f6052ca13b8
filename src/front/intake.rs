//! The body of a request on its way into the [spool](crate::spool): a piece at a time, so that a file of any size
//! takes the memory of one piece. What the bytes are is not known here.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures::StreamExt;
use ring::digest::Context;
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    error::{Error, Result},
    spool::{self, Draft},
};

/// Bytes gathered before they go to the spool, which may have to write them to disk.
const PIECE: usize = 256 << 10;

/// Where a body goes.
pub(super) struct Intake {
    /// What holds its bytes.
    pub draft: Draft,
    /// What digests them on the way, where somebody wants to know.
    pub sum: Option<Context>,
}

/// How a body ended.
pub(super) enum End {
    /// As its sender meant it to.
    Whole,
    /// Before its end.
    BrokeOff,
    /// Nothing came for as long as the hub waits.
    Silent,
    /// There was no room for all of it.
    TooLong,
    /// The spool did not take it.
    Unwritten(Error),
}

impl Intake {
    /// Takes a body of at most `room` bytes. What came before an end that is not [`End::Whole`] is in the draft,
    /// as far as it had room.
    ///
    /// # Errors
    /// A fault of the hub; the draft is lost then.
    pub async fn pour(mut self, body: Body, room: u64, silence: Duration) -> Result<(Self, End)> {
        let promised = body.size_hint().exact();
        if promised.is_some_and(|promised| promised > room) {
            return Ok((self, End::TooLong));
        }
        let mut stream = body.into_data_stream();
        let mut came = 0;
        loop {
            let (mut pieces, mut held, mut end) = (Vec::new(), 0, None);
            while held < PIECE && end.is_none() {
                match timeout(silence, stream.next()).await {
                    Ok(Some(Ok(piece))) => {
                        came += piece.len() as u64;
                        match came > room {
                            true => end = Some(End::TooLong),
                            false => {
                                held += piece.len();
                                pieces.push(piece);
                            }
                        }
                    }
                    Ok(None) if promised.is_none_or(|promised| promised == came) => end = Some(End::Whole),
                    Ok(None | Some(Err(_))) => end = Some(End::BrokeOff),
                    Err(_) => end = Some(End::Silent),
                }
            }
            let (written, trouble) = self.write(pieces).await?;
            self = written;
            if let Some(end) = trouble.map(End::Unwritten).or(end) {
                return Ok((self, end));
            }
        }
    }

    /// Writes pieces, away from the threads that serve others.
    async fn write(mut self, pieces: Vec<Bytes>) -> Result<(Self, Option<Error>)> {
        if pieces.is_empty() {
            return Ok((self, None));
        }
        spawn_blocking(move || {
            for piece in &pieces {
                if let Some(sum) = &mut self.sum {
                    sum.update(piece);
                }
                if let Err(error) = self.draft.write(piece) {
                    return (self, Some(error));
                }
            }
            (self, None)
        })
        .await
        .map_err(Error::internal)
    }
}

/// Takes a body that is whole or nothing.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::BrokeOff`], or what the spool says.
pub(super) async fn whole(draft: Draft, body: Body, limit: u64, silence: Duration) -> Result<spool::Body> {
    let (intake, end) = Intake { draft, sum: None }.pour(body, limit, silence).await?;
    match end {
        End::Whole => finish(intake.draft).await,
        End::BrokeOff => Err(Error::BrokeOff("the body broke off; send it again under the same id".into())),
        End::Silent => Err(Error::BrokeOff(format!(
            "the body broke off: nothing came for {} s; send it again under the same id",
            silence.as_secs()
        ))),
        End::TooLong => Err(too_large()),
        End::Unwritten(error) => Err(error),
    }
}

/// The body of a draft to which nothing is added any more.
///
/// # Errors
/// What the spool says.
pub(super) async fn finish(draft: Draft) -> Result<spool::Body> {
    spawn_blocking(move || draft.finish()).await.map_err(Error::internal)?
}

/// A file that the hub does not take.
pub(super) fn too_large() -> Error {
    Error::TooLarge { what: "the body", limit: "this hub's limit; send the file in parts".into() }
}
