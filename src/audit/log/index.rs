//! Where the entries of a log lie. Of most of them that is not kept: it is found by reading over those before, so that a
//! log of years takes next to no memory.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
};

/// How many entries lie between two of which it is kept where they lie.
const STEP: u64 = 64;

/// Where entries lie, as far as that is kept.
#[derive(Debug, Default)]
pub struct Index {
    /// The places of the entries 0, 64, 128, …
    places: Vec<u64>,
    size: u64,
}

impl Index {
    /// Takes in the place of the next entry.
    pub fn push(&mut self, place: u64) {
        if self.size.is_multiple_of(STEP) {
            self.places.push(place);
        }
        self.size += 1;
    }

    /// Where to begin to read for at most `count` entries from `from` on; `None` where there are none.
    pub fn find(&self, from: u64, count: u64) -> Option<Run> {
        let place = *self.places.get(usize::try_from(from / STEP).ok()?)?;
        let count = count.min(self.size.checked_sub(from)?);
        (count > 0).then_some(Run { place, over: from % STEP, count })
    }
}

/// Entries that lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where to begin.
    place: u64,
    /// How many come before them.
    over: u64,
    count: u64,
}

impl Run {
    /// Their bytes.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn read(self, file: &File) -> io::Result<Vec<Vec<u8>>> {
        let mut reader = BufReader::new(Reading { file, place: self.place });
        for _ in 0..self.over {
            entry(&mut reader)?;
        }
        (0..self.count).map(|_| entry(&mut reader)).collect()
    }
}

fn entry(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    reader.read_exact(&mut length)?;
    let mut entry = vec![0; usize::from(u16::from_be_bytes(length))];
    reader.read_exact(&mut entry)?;
    Ok(entry)
}

/// A file from some place on, which others read elsewhere at the same time.
struct Reading<'a> {
    file: &'a File,
    place: u64,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.place)?;
        self.place += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_entry_is_found() {
        let mut file = tempfile::tempfile().unwrap();
        let (mut index, mut place) = (Index::default(), 0);
        let entries: Vec<Vec<u8>> = (0..200_usize).map(|at| vec![u8::try_from(at).unwrap(); at * 37 % 500]).collect();
        for entry in &entries {
            index.push(place);
            file.write_all(&u16::try_from(entry.len()).unwrap().to_be_bytes()).unwrap();
            file.write_all(entry).unwrap();
            place += 2 + entry.len() as u64;
        }
        let read = |from: u64, count: u64| index.find(from, count).map(|run| run.read(&file).unwrap());
        for from in 0..200 {
            let rest = &entries[usize::try_from(from).unwrap()..];
            assert_eq!(read(from, 3).unwrap(), rest[..rest.len().min(3)]);
            assert_eq!(read(from, u64::MAX).unwrap(), rest);
        }
        for (from, count) in [(200, 1), (256, 1), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, 0)] {
            assert_eq!(read(from, count), None, "{count} from {from}");
        }
        assert!(Index::default().find(0, 1).is_none());
    }
}
