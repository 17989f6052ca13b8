//! Whether a message has the form of its kind. The library that reads messages takes the numbers in them on trust, and
//! would read on in what comes after, or past the end; so it gets one message at a time, and only one that is what it
//! says. Knows nothing of what messages mean.

/// Whether a message of that kind has all its parts and nothing after them. Kinds whose content is free, and those that
/// the library refuses by themselves, always have.
pub(super) fn is_well_formed(kind: u8, body: &[u8]) -> bool {
    let mut parts = Parts(body);
    let read = match kind {
        b'Q' | b'f' => parts.text(),
        b'P' => parts.text().and_then(|()| parts.text()).and_then(|()| parts.numbers(4)),
        b'B' => parts.text().and_then(|()| parts.text()).and_then(|()| parts.bound()),
        b'D' | b'C' => parts.bytes(1).and_then(|_| parts.text()),
        b'E' => parts.text().and_then(|()| parts.bytes(4)).map(|_| ()),
        b'S' | b'H' | b'X' | b'c' => Some(()),
        _ => return true,
    };
    read.is_some() && parts.0.is_empty()
}

/// Whether the texts that a message begins with are UTF-8, as all text is here. The library would put signs of its own
/// in place of what is not.
pub(super) fn is_utf8(kind: u8, body: &[u8]) -> bool {
    let (skipped, texts) = match kind {
        b'Q' | b'f' | b'E' => (0, 1),
        b'P' | b'B' => (0, 2),
        b'D' | b'C' => (1, 1),
        _ => return true,
    };
    let mut parts = body.get(skipped..).unwrap_or_default().split(|byte| *byte == 0);
    parts.by_ref().take(texts).all(|text| std::str::from_utf8(text).is_ok())
}

/// What is left of a message.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A text up to the byte that ends it.
    fn text(&mut self) -> Option<()> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        self.bytes(end + 1).map(|_| ())
    }

    fn count(&mut self) -> Option<usize> {
        let bytes = self.bytes(2)?;
        Some(usize::from(u16::from_be_bytes(bytes.try_into().ok()?)))
    }

    /// Numbers of so many bytes each, after how many there are.
    fn numbers(&mut self, width: usize) -> Option<()> {
        let count = self.count()?;
        self.bytes(count * width).map(|_| ())
    }

    /// The forms of values, the values, and the forms of columns.
    fn bound(&mut self) -> Option<()> {
        self.numbers(2)?;
        for _ in 0..self.count()? {
            let length = i32::from_be_bytes(self.bytes(4)?.try_into().ok()?);
            match usize::try_from(length) {
                Ok(length) => {
                    self.bytes(length)?;
                }
                // NULL has no bytes.
                Err(_) if length == -1 => {}
                Err(_) => return None,
            }
        }
        self.numbers(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_all_their_parts_and_no_more() {
        let bound = [&b"p\0s\0"[..], &[0, 1, 0, 1, 0, 2, 0, 0, 0, 4, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 1]];
        let bound = bound.concat();
        let good: [(u8, &[u8]); 8] = [
            (b'Q', b"SELECT 1\0"),
            (b'Q', b"\0"),
            (b'P', b"s\0SELECT $1\0\0\x01\0\0\0\x17"),
            (b'B', &bound),
            (b'D', b"Ss\0"),
            (b'C', b"P\0"),
            (b'E', b"p\0\0\0\0\x05"),
            (b'S', b""),
        ];
        for (kind, body) in good {
            assert!(is_well_formed(kind, body), "{}", char::from(kind));
            for end in 0..body.len() {
                assert!(!is_well_formed(kind, &body[..end]), "{} of {end} bytes", char::from(kind));
            }
            let longer = [body, &[0]].concat();
            assert!(!is_well_formed(kind, &longer), "{} and more", char::from(kind));
        }
    }

    #[test]
    fn texts_are_utf8() {
        let good: [(u8, &[u8]); 4] = [
            (b'Q', "SELECT '社区'\0".as_bytes()),
            (b'P', b"s\0SELECT $1\0\0\x01\xff\xff\xff\xff"),
            (b'B', b"\0\0\0\0\0\x01\0\0\0\x01\xff\0\0"),
            (b'D', b"\xffs\0"),
        ];
        for (kind, body) in good {
            assert!(is_utf8(kind, body), "{}", char::from(kind));
        }
        for (kind, body) in [
            (b'Q', &b"SELECT '\xc9\xe7'\0"[..]),
            (b'P', b"s\xff\0SELECT 1\0\0\0"),
            (b'P', b"s\0SELECT '\xff'\0\0\0"),
            (b'B', b"\0s\xff\0\0\0\0\0\0\0"),
            (b'D', b"S\xff\0"),
            (b'E', b"\xff\0\0\0\0\0"),
        ] {
            assert!(!is_utf8(kind, body), "{}", char::from(kind));
        }
    }

    #[test]
    fn counts_are_not_taken_on_trust() {
        for body in [
            &b"\0\0\0\0\x7f\xff"[..],
            b"\0\0\xff\xff",
            b"\0\0\0\0\0\x01\x7f\xff\xff\xff",
            b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0",
        ] {
            assert!(!is_well_formed(b'B', body), "{body:?}");
        }
        assert!(!is_well_formed(b'P', b"\0\0\xff\xff"));
        assert!(!is_well_formed(b'Q', b"SELECT '\0'\0"));
    }
}
