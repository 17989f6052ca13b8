//! Canonical forms of identifiers: one person, one spelling, or none.
//!
//! Version 1. A value that cannot be brought into its canonical form with certainty is refused rather
//! than guessed, since a wrong guess joins two people.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;

use crate::dataset::IdentifierKind;

/// What became of one identifier as typed.
#[derive(PartialEq, Eq)]
pub enum Canonical {
    /// Nothing was there.
    Missing,
    /// Its canonical form. `touched` says whether that differs from what was typed.
    Value {
        /// The canonical text.
        text: String,
        /// Whether it was changed on the way.
        touched: bool,
    },
    /// It has not the shape of its kind.
    Malformed,
    /// It has the shape and fails its check.
    BadCheck,
}

/// Brings `typed` into the canonical form of `kind`.
pub fn canonical(kind: IdentifierKind, typed: &str) -> Canonical {
    // The clean case, by far the commonest, must not allocate more than its result.
    let plain = plain(typed);
    if plain.is_empty() {
        return Canonical::Missing;
    }
    let result = match kind {
        IdentifierKind::CnResidentId => resident_id(&squeezed(&plain).to_ascii_uppercase()),
        IdentifierKind::CnMobile => mobile(&squeezed(&plain)),
        IdentifierKind::Uscc => uscc(&squeezed(&plain).to_ascii_uppercase()),
        IdentifierKind::Name => Ok(name(&plain)),
        IdentifierKind::Opaque => Ok(plain),
    };
    match result {
        Ok(text) if text.is_empty() => Canonical::Missing,
        Ok(text) => Canonical::Value { touched: text != typed, text },
        Err(Fault::Shape) => Canonical::Malformed,
        Err(Fault::Check) => Canonical::BadCheck,
    }
}

/// Whether `text` holds what reads like a resident id, a mobile number or a credit code.
/// `is_division` tells division codes, which look like old resident ids, from the latter.
pub fn holds_identifier(text: &str, is_division: impl Fn(&str) -> bool) -> bool {
    !identifier_spans(text, is_division).is_empty()
}

/// The byte ranges of `text` that read like a resident id (18 characters, or the old 15 digits), a mobile
/// number or a credit code, in whatever digits, in one piece or in the groups people write them in.
///
/// A piece is looked at whole: digits inside a longer number are that number's. An id with a wrong check
/// counts in one piece, as somebody's with a typing error, and not in groups, where dates and serial
/// numbers meet by chance.
pub fn identifier_spans(text: &str, is_division: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
    let (numbers, words) = pieces(text);
    let mut spans: Vec<Range<usize>> =
        words.into_iter().filter(|word| uscc(&word.0).is_ok()).map(|word| word.1).collect();
    let mut at = 0;
    while at < numbers.len() {
        match (1..=numbers.len().min(at + LONGEST_GROUP) - at).rev().find(|count| {
            let group = &numbers[at..at + count];
            group[1..].iter().all(|number| number.joined) && is_person(group, &is_division)
        }) {
            Some(count) => {
                spans.push(numbers[at].place.start..numbers[at + count - 1].place.end);
                at += count;
            }
            None => at += 1,
        }
    }
    spans.sort_by_key(|span| span.start);
    spans.dedup_by(|later, earlier| {
        let overlap = later.start < earlier.end;
        earlier.end = if overlap { earlier.end.max(later.end) } else { earlier.end };
        overlap
    });
    spans
}

/// Most pieces an id is written in: every digit for itself.
const LONGEST_GROUP: usize = 18;

/// So many separators may stand between two pieces of one number.
const WIDEST_GAP: usize = 3;

/// A whole number as it stands in a text.
struct Number {
    /// Its digits, and the X that may end an id.
    symbols: String,
    place: Range<usize>,
    /// Whether nothing but a few separators stands between it and the number before.
    joined: bool,
}

/// The numbers of a text, and its words of letters and digits.
fn pieces(text: &str) -> (Vec<Number>, Vec<(String, Range<usize>)>) {
    let mut numbers: Vec<Number> = Vec::new();
    let mut words: Vec<(String, Range<usize>)> = Vec::new();
    // What the last symbols were: inside a number, inside a word, and how many separators since.
    let (mut in_number, mut in_word, mut gap) = (false, false, WIDEST_GAP + 1);
    for (at, c) in text.char_indices() {
        let place = at..at + c.len_utf8();
        for folded in std::iter::once(c).nfkc().filter(|c| !is_invisible(*c)) {
            let symbol = digit(folded).unwrap_or(folded).to_ascii_uppercase();
            if !symbol.is_ascii_alphanumeric() {
                gap = if is_separator(symbol) { gap.saturating_add(1) } else { WIDEST_GAP + 1 };
                (in_number, in_word) = (false, false);
                continue;
            }
            match words.last_mut().filter(|_| in_word) {
                Some(word) => {
                    word.0.push(symbol);
                    word.1.end = place.end;
                }
                None => words.push((symbol.to_string(), place.clone())),
            }
            in_word = true;
            let last = numbers.last_mut().filter(|_| in_number || (symbol == 'X' && gap <= WIDEST_GAP));
            if symbol.is_ascii_digit() {
                match last {
                    Some(number) => {
                        number.symbols.push(symbol);
                        number.place.end = place.end;
                    }
                    None => {
                        let joined = gap <= WIDEST_GAP;
                        numbers.push(Number { symbols: symbol.to_string(), place: place.clone(), joined });
                    }
                }
                (in_number, gap) = (true, 0);
                continue;
            }
            if let (Some(number), 'X') = (last, symbol) {
                number.symbols.push('X');
                number.place.end = place.end;
            }
            (in_number, gap) = (false, WIDEST_GAP + 1);
        }
    }
    (numbers, words)
}

/// Whether these pieces together are somebody's number.
fn is_person(group: &[Number], is_division: &impl Fn(&str) -> bool) -> bool {
    let whole: String = group.iter().map(|number| number.symbols.as_str()).collect();
    if whole.len() > 18 {
        return false;
    }
    let digits = whole.trim_end_matches('X');
    let widths: Vec<usize> = group.iter().map(|number| number.symbols.trim_end_matches('X').len()).collect();
    let phone = match digits.len() {
        11 => Some((digits, widths.as_slice())),
        13 => digits.strip_prefix("86").map(|digits| (digits, if widths[0] == 2 { &widths[1..] } else { &widths })),
        15 => digits.strip_prefix("0086").map(|digits| (digits, if widths[0] == 4 { &widths[1..] } else { &widths })),
        _ => None,
    };
    if let Some((digits, widths)) = phone
        && mobile(digits).is_ok()
        && (widths.len() == 1 || matches!(widths, [3, 4, 4] | [3, 8]))
    {
        return true;
    }
    match (whole.len(), resident_id(&whole)) {
        (18, Ok(_)) => true,
        (18, Err(Fault::Check)) => group.len() == 1 && is_province(&whole),
        (15, Ok(_)) => group.len() == 1 && is_province(&whole) && !is_division(&whole),
        // An X may end something else: 15 digits and a letter.
        _ => false,
    }
}

/// Whether an id begins as ids do: with one of the eight regions of GB/T 2260.
fn is_province(id: &str) -> bool {
    matches!(id.as_bytes(), [b'1'..=b'8', b'0'..=b'7', ..])
}

/// The ASCII digit of any decimal digit.
fn digit(c: char) -> Option<char> {
    // Zeros of the decimal digits of Unicode that people's keyboards have; each is followed by its nine.
    const ZEROS: [u32; 14] =
        [0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xe50, 0xff10];
    let code = u32::from(c);
    let zero = ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code))?;
    char::from_digit(code - zero, 10)
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            '-' | '.' | '_' | '/' | '·' | '(' | ')' | '+' | ',' | ':' | '~' | '、' | '\u{2010}'
                ..='\u{2015}' | '\u{2212}'
        )
}

/// NFKC, without invisible marks, trimmed.
fn plain(typed: &str) -> String {
    if typed.is_ascii() {
        return typed.trim().to_owned();
    }
    let visible = typed.nfkc().filter(|c| !is_invisible(*c)).map(|c| digit(c).unwrap_or(c));
    visible.collect::<String>().trim().to_owned()
}

/// Without white space and dashes, which people put in for reading.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '-' | '\u{2010}'..='\u{2015}')).collect()
}

enum Fault {
    Shape,
    Check,
}

/// GB 11643: six digits of area, birth date, three of sequence, check by ISO 7064 MOD 11-2. The older
/// 15-digit form lacks the century and the check; it is completed with 19.
fn resident_id(text: &str) -> Result<String, Fault> {
    let bytes = text.as_bytes();
    match bytes.len() {
        15 if bytes.iter().all(u8::is_ascii_digit) => {
            let long = format!("{}19{}", &text[..6], &text[6..]);
            if !is_date(&long[6..14]) {
                return Err(Fault::Shape);
            }
            let check = resident_check(long.as_bytes());
            Ok(long + std::str::from_utf8(&[check]).unwrap_or_default())
        }
        18 if bytes[..17].iter().all(u8::is_ascii_digit) && (bytes[17].is_ascii_digit() || bytes[17] == b'X') => {
            if !is_date(&text[6..14]) {
                return Err(Fault::Shape);
            }
            if resident_check(&bytes[..17]) == bytes[17] { Ok(text.to_owned()) } else { Err(Fault::Check) }
        }
        _ => Err(Fault::Shape),
    }
}

fn resident_check(first17: &[u8]) -> u8 {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let sum: u32 = first17.iter().zip(WEIGHTS).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    b"10X98765432"[(sum % 11) as usize]
}

fn is_date(text: &str) -> bool {
    chrono::NaiveDate::parse_from_str(text, "%Y%m%d").is_ok_and(|date| chrono::Datelike::year(&date) >= 1850)
}

/// Eleven digits from 13 to 19, with or without the country code.
fn mobile(text: &str) -> Result<String, Fault> {
    let digits = text.strip_prefix("+86").or_else(|| text.strip_prefix("0086")).unwrap_or(text);
    let bytes = digits.as_bytes();
    let fits = bytes.len() == 11
        && bytes.iter().all(u8::is_ascii_digit)
        && bytes[0] == b'1'
        && (b'3'..=b'9').contains(&bytes[1]);
    fits.then(|| digits.to_owned()).ok_or(Fault::Shape)
}

/// GB 32100: 17 characters of 0-9A-Z without I O S V Z, and a check with weights 3^i mod 31.
fn uscc(text: &str) -> Result<String, Fault> {
    const ALPHABET: &[u8] = b"0123456789ABCDEFGHJKLMNPQRTUWXY";
    let mut values = [0; 18];
    if text.len() != 18 {
        return Err(Fault::Shape);
    }
    for (value, byte) in values.iter_mut().zip(text.bytes()) {
        *value = ALPHABET.iter().position(|c| *c == byte).ok_or(Fault::Shape)?;
    }
    let mut weight = 1;
    let mut sum = 0;
    for value in &values[..17] {
        sum += value * weight;
        weight = weight * 3 % 31;
    }
    if (31 - sum % 31) % 31 == values[17] { Ok(text.to_owned()) } else { Err(Fault::Check) }
}

/// Chinese names lose all white space, others keep single spaces and lose case.
fn name(text: &str) -> String {
    if text.chars().any(|c| matches!(c, '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')) {
        return text.chars().filter(|c| !c.is_whitespace()).collect();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: IdentifierKind, typed: &str) -> Option<String> {
        match canonical(kind, typed) {
            Canonical::Value { text, .. } => Some(text),
            _ => None,
        }
    }

    #[test]
    fn resident_ids_of_every_spelling_meet_in_one() {
        // The first three are the standard's own examples, the fourth the 15-digit form of a published one.
        for (typed, expected) in [
            ("11010519491231002X", "11010519491231002X"),
            ("34052419800101001x", "34052419800101001X"),
            ("４４０５２４１８８００１０１００１４", "440524188001010014"),
            ("130503670401001", "130503196704010016"),
            (" 110105 19491231 002X\u{3000}", "11010519491231002X"),
            ("\u{feff}110105-19491231-002X", "11010519491231002X"),
        ] {
            assert_eq!(value(IdentifierKind::CnResidentId, typed).as_deref(), Some(expected), "{typed}");
        }
    }

    #[test]
    fn wrong_ids_are_refused_by_their_fault() {
        let of = |typed| canonical(IdentifierKind::CnResidentId, typed);
        assert!(of("110105194912310021") == Canonical::BadCheck);
        assert!(of("110105194913310021") == Canonical::Malformed);
        assert!(of("4.20104E+17") == Canonical::Malformed);
        assert!(of(" \u{3000}") == Canonical::Missing);
    }

    #[test]
    fn phones_codes_and_names() {
        assert_eq!(value(IdentifierKind::CnMobile, "+86 141-0618-5201").as_deref(), Some("14106185201"));
        assert!(canonical(IdentifierKind::CnMobile, "1410618520") == Canonical::Malformed);
        assert_eq!(value(IdentifierKind::Uscc, "91350100m000100y43").as_deref(), Some("91350100M000100Y43"));
        assert!(canonical(IdentifierKind::Uscc, "91350100M000100Y44") == Canonical::BadCheck);
        assert_eq!(value(IdentifierKind::Name, "王　浩").as_deref(), Some("王浩"));
        assert_eq!(value(IdentifierKind::Name, " Ana   maria ").as_deref(), Some("ANA MARIA"));
    }

    #[test]
    fn identifiers_are_found_in_text_however_they_are_typed() {
        let found = |text: &str| holds_identifier(text, |code| code == "420191001001001");
        for text in [
            "家属电话14106185201",
            "id １１０１０５１９４９１２３１００２Ｘ!",
            "139-1234-5673",
            "139 1234 5674",
            "139.1234.5678",
            "8613912345672",
            "+86 139 1234 5671",
            "tel13912345675",
            "13912345676x",
            "ID11010519491231002X",
            "110105194912310021a",
            "110105 19491231 002X",
            "110105-19491231-002x",
            "1101051949\u{200b}1231002X",
            "1101\u{ad}05194912310021",
            "١٣٩١٢٣٤٥٦٧٥",
            "130503670401001",
            "91350100M000100Y43",
            "咳 13912345678 13912345679",
            "咳 2026-01-05 13912345678",
            "10:00:00 13912345678",
            "13912345678/13912345679",
            "13912345678 3",
            "139 - 1234 - 5678",
            "139,1234,5678",
            "1 1 0 1 0 5 1 9 4 9 1 2 3 1 0 0 2 X",
        ] {
            assert!(found(text), "{text}");
        }
        for text in [
            "grid 420191001001001",
            "2026-01-05 10:00:00",
            "86900001",
            "V20260105000001",
            "36.5",
            "B0001, 2 boxes",
            "1234567890123456789012",
            "https://example.org/a/b/c",
            "血压130/80 98.6 120",
            "1380 1400 100",
            "1 3 5 7 9 1 2 3 4 5 6",
            "1.3 1.4 1.5 1.6 1.7 1",
            "S/N 86900001-19981231-0001",
            "lot 123456-20260105-0012",
            "drug 6901234 2026-01-05 12345",
        ] {
            assert!(!found(text), "{text}");
        }
    }
}
