//! The memory that answers take from when they are made until their readers have them. A reader may be slow, and an
//! answer large: so many of them as fit are kept for readers, and no one caller's unread answers keep out the others'.
//! Knows no door.

use std::{
    collections::HashMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::{
    array::{Array, ArrayData, RecordBatch},
    buffer::NullBuffer,
};

use crate::{
    error::{Error, Result},
    query::shares::Shares,
};

/// Bytes of an answer up to which it is not counted: connections take as much, and there are only so many of them.
const SMALL: usize = 64 << 10;

/// Memory for answers, in bytes, divided among callers by [`Shares`].
pub(super) struct Outgoing {
    all: usize,
    shares: Mutex<Shares>,
}

/// The room that an answer takes in memory, given back when the last copy of it is dropped: whoever keeps rows of an
/// answer keeps this with them. Small answers take none.
#[derive(Clone, Debug, Default)]
pub struct Room(Option<Arc<Taken>>);

struct Taken {
    outgoing: Arc<Outgoing>,
    whose: Arc<str>,
    bytes: usize,
}

impl Outgoing {
    /// So many bytes.
    pub(super) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, shares: Mutex::new(Shares::of(all)) })
    }

    /// Room for the rows of a caller's answer.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where they never have room, or where the caller's own answers take it;
    /// [`Error::Busy`] where those of others do.
    pub(super) fn room(self: &Arc<Self>, caller: &str, batches: &[RecordBatch]) -> Result<Room> {
        self.room_of(caller, bytes_of(batches))
    }

    fn room_of(self: &Arc<Self>, caller: &str, bytes: usize) -> Result<Room> {
        if bytes <= SMALL {
            return Ok(Room::default());
        }
        if bytes > self.all {
            return Err(Error::ResourceLimit(format!(
                "the answer takes more than the {} MiB of memory that there are for answers; aggregate it or add a \
                 LIMIT",
                self.all >> 20
            )));
        }
        let whose: Arc<str> = Arc::from(caller);
        let mut shares = self.shares();
        if shares.take(Some(&whose), bytes) {
            return Ok(Room(Some(Arc::new(Taken { outgoing: Arc::clone(self), whose, bytes }))));
        }
        if bytes > shares.free() + shares.held(caller) {
            return Err(Error::Busy);
        }
        // It would have room if it had read what it asked for.
        Err(Error::ResourceLimit(
            "answers of this caller that are not read yet leave no room for another; read them to their end, or close \
             their cursors and portals"
                .into(),
        ))
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// How much it is, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |taken| taken.bytes)
    }
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.outgoing.shares().give_back(Some(&self.whose), self.bytes);
    }
}

/// How many bytes rows keep in memory. Buffers count once and whole, since a slice keeps all of the buffer that it is
/// cut from, and others may be cut from it too.
fn bytes_of(batches: &[RecordBatch]) -> usize {
    let mut buffers = HashMap::new();
    for column in batches.iter().flat_map(RecordBatch::columns) {
        note(&column.to_data(), &mut buffers);
    }
    buffers.into_values().fold(0, usize::saturating_add)
}

/// Takes down the buffers of an array, and how long each is.
fn note(data: &ArrayData, buffers: &mut HashMap<NonNull<u8>, usize>) {
    for buffer in data.buffers().iter().chain(data.nulls().map(NullBuffer::buffer)) {
        // Those that the engine did not allocate itself may say nothing of their capacity.
        let length = buffer.capacity().max(buffer.len());
        let known = buffers.entry(buffer.data_ptr()).or_default();
        *known = length.max(*known);
    }
    for child in data.child_data() {
        note(child, buffers);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    const KIB: usize = 1 << 10;

    fn slug(told: Result<Room>) -> &'static str {
        told.as_ref().map_or_else(Error::slug, |_| "room")
    }

    #[test]
    fn answers_that_are_not_read_leave_room_for_those_of_others() {
        let outgoing = Outgoing::new(1_024 * KIB);
        let (first, second) = (outgoing.room_of("slow", 256 * KIB).unwrap(), outgoing.room_of("slow", 256 * KIB));
        assert_eq!((first.bytes(), slug(outgoing.room_of("slow", 256 * KIB))), (256 * KIB, "resource-limit"));
        let other = outgoing.room_of("other", 512 * KIB).unwrap();
        assert_eq!(slug(outgoing.room_of("third", 256 * KIB)), "busy");
        // What is small passes whoever else waits, and its caller too.
        for caller in ["slow", "other", "third"] {
            assert_eq!(outgoing.room_of(caller, SMALL).unwrap().bytes(), 0);
        }
        let copy = other.clone();
        drop(other);
        assert_eq!(slug(outgoing.room_of("third", 256 * KIB)), "busy", "a copy is kept");
        drop(copy);
        assert_eq!(slug(outgoing.room_of("third", 256 * KIB)), "room");
        drop((first, second));
        assert_eq!(outgoing.shares().free(), 1_024 * KIB);
    }

    #[test]
    fn what_never_has_room_is_told_so() {
        let outgoing = Outgoing::new(1_024 * KIB);
        let told = outgoing.room_of("caller", 1_024 * KIB + 1).unwrap_err();
        assert!(matches!(&told, Error::ResourceLimit(why) if why.contains("1 MiB")), "{told}");
        assert_eq!(slug(outgoing.room_of("caller", 1_024 * KIB)), "room");
    }

    #[test]
    fn buffers_count_once_and_whole() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x".repeat(100)), None]));
        let (one, other) = (
            RecordBatch::try_from_iter([("n", Arc::clone(&numbers))]).unwrap(),
            RecordBatch::try_from_iter([("t", texts)]).unwrap(),
        );
        let (of_one, of_other) = (bytes_of(std::slice::from_ref(&one)), bytes_of(std::slice::from_ref(&other)));
        assert!((8_000..=16_384).contains(&of_one), "{of_one}");
        assert!((100 + 3 * 4 + 1..4_096).contains(&of_other), "{of_other}");
        assert_eq!(bytes_of(&[one.slice(3, 1), one.slice(500, 500), other]), of_one + of_other);
        assert_eq!(bytes_of(&[]), 0);
    }
}
