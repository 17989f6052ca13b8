//! Division codes: city > district > subdistrict > community > grid, in unpadded canonical form.
//!
//! The statistical division code has 2, 4, 6, 9 or 12 digits from province to community (GB/T 2260 and
//! the statistics bureau's urban-rural codes); a grid adds 3. Feeds pad with zeros, the hub does not,
//! so that *lies in* is *has as prefix*.

use std::collections::HashSet;

/// The lengths a canonical code can have, from province to grid.
pub const LENGTHS: [usize; 6] = [2, 4, 6, 9, 12, 15];

/// The levels that callers name, each with the length of its codes.
pub const LEVELS: [(&str, usize); 5] =
    [("city", 4), ("district", 6), ("subdistrict", 9), ("community", 12), ("grid", 15)];

/// The length of a code of that level; `None` where it is the name of no level.
pub fn width(level: &str) -> Option<usize> {
    LEVELS.iter().find(|(name, _)| *name == level).map(|(_, width)| *width)
}

/// The canonical form of a code: trimmed, digits only, zero padding of whole levels removed. `None`
/// where it is no division code.
pub fn canonical(text: &str) -> Option<String> {
    let mut code = text.trim();
    if !code.bytes().all(|b| b.is_ascii_digit()) || !LENGTHS.contains(&code.len()) {
        return None;
    }
    // Padding fills whole levels, so it is taken off level by level; a province is never padding.
    for pair in LENGTHS.windows(2).rev() {
        let (shorter, longer) = (pair[0], pair[1]);
        if code.len() == longer && code[shorter..].bytes().all(|b| b == b'0') {
            code = &code[..shorter];
        }
    }
    Some(code.to_owned())
}

/// Whether `code` lies in `division` (or is it).
pub fn lies_in(code: &str, division: &str) -> bool {
    code.starts_with(division)
}

/// The division codes known at one moment, as `platform.divisions` held them.
#[derive(Debug, Default, Clone)]
pub struct Divisions {
    codes: HashSet<String>,
}

impl Divisions {
    /// A snapshot of these canonical codes.
    pub fn new(codes: impl IntoIterator<Item = String>) -> Self {
        Self { codes: codes.into_iter().collect() }
    }

    /// Whether the canonical code is listed.
    pub fn contains(&self, code: &str) -> bool {
        self.codes.contains(code)
    }

    /// How many codes are listed.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    /// Whether none is listed.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_lengths_of_codes() {
        assert!(LEVELS.iter().all(|(_, width)| LENGTHS.contains(width)));
        assert_eq!(width("subdistrict"), Some(9));
        assert_eq!(width("street"), None);
    }

    #[test]
    fn padding_is_taken_off_by_whole_levels() {
        for (padded, plain) in [
            ("420000000000", "42"),
            ("420100000000", "4201"),
            ("420103000000", "420103"),
            ("420103010000", "420103010"),
            ("420103010001", "420103010001"),
            ("420100", "4201"),
            ("420103010001010", "420103010001010"),
            (" 420103 ", "420103"),
        ] {
            assert_eq!(canonical(padded).as_deref(), Some(plain), "{padded}");
        }
        for wrong in ["", "4", "42010", "42010a", "4201030100010011"] {
            assert_eq!(canonical(wrong), None, "{wrong}");
        }
    }
}
