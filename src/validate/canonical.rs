//! Canonical forms of identifiers: one person, one spelling, or none.
//!
//! Version 1. A value that cannot be brought into its canonical form with certainty is refused rather
//! than guessed, since a wrong guess joins two people.

use std::{borrow::Cow, ops::Range};

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
        // Numbers that lost their digits are one spelling of many people.
        IdentifierKind::Opaque if is_scientific(&plain) => Err(Fault::Shape),
        IdentifierKind::Opaque => Ok(plain),
    };
    match result {
        Ok(text) if text.is_empty() => Canonical::Missing,
        Ok(text) => Canonical::Value { touched: text != typed, text },
        Err(Fault::Shape) => Canonical::Malformed,
        Err(Fault::Check) => Canonical::BadCheck,
    }
}

/// Whether `typed` is in the canonical form of `kind` already, told by a look and without making that form. Where a look
/// does not tell it is false, and [`canonical`] decides.
pub fn is_canonical(kind: IdentifierKind, typed: &str) -> bool {
    match kind {
        IdentifierKind::CnResidentId => is_long_resident_id(typed.as_bytes()) && long_resident_id(typed).is_ok(),
        IdentifierKind::CnMobile => is_mobile(typed.as_bytes()),
        IdentifierKind::Uscc => false,
        // Normalisation leaves these as they are.
        IdentifierKind::Name => !typed.is_empty() && typed.chars().all(|c| matches!(c, '\u{4e00}'..='\u{9fff}')),
        IdentifierKind::Opaque => {
            !typed.is_empty() && typed.bytes().all(|byte| byte.is_ascii_graphic()) && !is_scientific(typed)
        }
    }
}

/// Whether `typed` is what spreadsheets make of a long number, `4.20104E+17` or `420104198001010000`: they keep
/// 15 digits, and the rest is lost for good. The second form is told from a typing error by its three zeros at
/// the end, so ask only about what failed its check.
pub fn is_spreadsheet_number(typed: &str) -> bool {
    let text = squeezed(&plain(typed));
    let rounded = text.len() == 18 && text.ends_with("000") && text.bytes().all(|byte| byte.is_ascii_digit());
    rounded || is_scientific(&text)
}

/// Digits in the form `d.ddE+dd`, as spreadsheets show numbers that are wider than their column.
fn is_scientific(text: &str) -> bool {
    let Some((number, exponent)) = text.split_once("E+").or_else(|| text.split_once("e+")) else { return false };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    whole.len() == 1 && digits(whole) && digits(fraction) && (1..=2).contains(&exponent.len()) && digits(exponent)
}

/// Whether `text` is a day as spreadsheets keep it, `46030` or `46030.375`, that was exported as a number.
///
/// Such days are not guessed: one system counts from 1900 and another from 1904, a file does not say which, and
/// the wrong one is four years and a day off, which no check would find.
pub fn is_serial_day(text: &str) -> bool {
    let (day, time) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    day.len() == 5 && digits(day) && digits(time)
}

/// A text with its digits, letters, signs and spaces in their plain form (NFKC), trimmed. Borrowed where nothing is to
/// do, which is told by its being ASCII.
pub fn plain_text(typed: &str) -> Cow<'_, str> {
    match typed.is_ascii() {
        true => Cow::Borrowed(typed.trim()),
        false => Cow::Owned(plain(typed)),
    }
}

/// A decimal number without exponent, plus sign and needless zeros: `1.85E+01` is `18.5`, `1.0` is `1`. By its digits
/// alone, so that nothing is rounded. `None` where it is no number, or so long, large or small that no field holds it.
pub fn written_out(text: &str) -> Option<String> {
    const MOST: usize = 64;
    if text.len() > MOST {
        return None;
    }
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: isize = exponent.parse().ok()?;
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => ("-", number),
        None => ("", number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = number.len() > number.matches('.').count()
        && [whole, fraction].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    if !is_number || exponent.unsigned_abs() > MOST {
        return None;
    }
    let zeros = "0".repeat(MOST);
    let digits = format!("{zeros}{whole}{fraction}{zeros}");
    // The point moves by the exponent, from where it stood.
    let (whole, fraction) = digits.split_at((MOST + whole.len()).checked_add_signed(exponent)?);
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

/// A day or a time as spreadsheets write it, `2026/1/8`, `2026-1-8 9:05` or `2026年1月8日`, in the form of ISO
/// 8601. `None` where it is in that form already, or in none that says which number is the month.
pub fn plain_time(text: &str) -> Option<String> {
    let (day, rest) = match text.find([' ', 'T', 't']) {
        Some(at) => (&text[..at], text[at + 1..].trim_start()),
        None => (text, ""),
    };
    let plain_day = plain_day(day)?;
    if rest.is_empty() {
        return (plain_day != day).then_some(plain_day);
    }
    let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, ':' | '.')).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(end);
    let mut parts = time.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next().unwrap_or("00"));
    let two = |part: &str| (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    let whole = second.split('.').next().unwrap_or_default();
    if parts.next().is_some() || !two(hour) || !two(minute) || !two(whole) {
        return None;
    }
    let pad = if whole.len() == 1 { "0" } else { "" };
    let plain = format!("{plain_day} {hour:0>2}:{minute:0>2}:{pad}{second}{zone}");
    // The letter between day and time is no difference.
    (plain.as_bytes() != text.replacen(['T', 't'], " ", 1).as_bytes()).then_some(plain)
}

/// A day of year, month and day in that order, with four digits of a year.
fn plain_day(text: &str) -> Option<String> {
    let text = text.strip_suffix('日').unwrap_or(text);
    let mut parts = text.split(['-', '/', '年', '月']);
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let fits = year.len() == 4 && (1..=2).contains(&month.len()) && (1..=2).contains(&day.len());
    let whole = parts.next().is_none() && digits(year) && digits(month) && digits(day);
    (fits && whole).then(|| format!("{year}-{month:0>2}-{day:0>2}"))
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
    if !is_worth_a_look(text) {
        return Vec::new();
    }
    let pieces = Pieces::of(text);
    let codes = pieces.words.iter().filter(|word| uscc(pieces.symbols(word)).is_ok());
    let mut spans: Vec<Range<usize>> = codes.map(|word| word.place.clone()).collect();
    let numbers = pieces.numbers.as_slice();
    let mut at = 0;
    while at < numbers.len() {
        let most = numbers.len().min(at + LONGEST_GROUP);
        let joined = numbers[at + 1..most].iter().take_while(|number| number.joined).count();
        match (1..=joined + 1).rev().find(|count| pieces.is_person(&numbers[at..at + count], &is_division)) {
            Some(count) => {
                spans.push(numbers[at].piece.place.start..numbers[at + count - 1].piece.place.end);
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

/// Whether a text has digits enough for the shortest number, or a word as long as a credit code; also where it has
/// characters that may stand for either. Most texts have not, and taking them to pieces costs far more.
fn is_worth_a_look(text: &str) -> bool {
    const SHORTEST_NUMBER: usize = 11;
    const CODE: usize = 18;
    let (mut digits, mut word) = (0, 0);
    for c in text.chars() {
        match c {
            '0'..='9' => (digits, word) = (digits + 1, word + 1),
            'a'..='z' | 'A'..='Z' => word += 1,
            // Ideographs, and the punctuation between them.
            '\0'..='\x7f' | '\u{3000}'..='\u{3002}' | '\u{4e00}'..='\u{9fff}' | '，' | '；' | '：' | '（' | '）' => {
                word = 0
            }
            _ => return true,
        }
        if digits >= SHORTEST_NUMBER || word >= CODE {
            return true;
        }
    }
    false
}

/// Most pieces an id is written in: every digit for itself.
const LONGEST_GROUP: usize = 18;

/// So many separators may stand between two pieces of one number.
const WIDEST_GAP: usize = 3;

/// The numbers of a text, and its words of letters and digits.
#[derive(Default)]
struct Pieces {
    /// The letters and digits of the text one after the other, in capitals and ASCII. What is one piece, or a group of
    /// joined ones, stands together here.
    symbols: String,
    numbers: Vec<Number>,
    words: Vec<Piece>,
}

/// Letters and digits that belong together.
struct Piece {
    /// Where they are among the symbols.
    symbols: Range<usize>,
    /// Where they are in the text.
    place: Range<usize>,
}

/// A whole number as it stands in a text: its digits, and the X that may end an id.
struct Number {
    piece: Piece,
    /// Whether nothing but a few separators stands between it and the number before.
    joined: bool,
}

/// What the last symbols were: inside a number, inside a word, and how many separators since.
struct Reading {
    in_number: bool,
    in_word: bool,
    gap: usize,
}

impl Pieces {
    fn of(text: &str) -> Self {
        let mut pieces = Self::default();
        let mut reading = Reading { in_number: false, in_word: false, gap: WIDEST_GAP + 1 };
        for (at, c) in text.char_indices() {
            let place = at..at + c.len_utf8();
            // Which is in its plain form, and visible.
            if c.is_ascii() {
                pieces.read(c.to_ascii_uppercase(), &place, &mut reading);
                continue;
            }
            for folded in std::iter::once(c).nfkc().filter(|c| !is_invisible(*c)) {
                pieces.read(digit(folded).unwrap_or(folded).to_ascii_uppercase(), &place, &mut reading);
            }
        }
        pieces
    }

    fn read(&mut self, symbol: char, place: &Range<usize>, reading: &mut Reading) {
        if !symbol.is_ascii_alphanumeric() {
            reading.gap = if is_separator(symbol) { reading.gap.saturating_add(1) } else { WIDEST_GAP + 1 };
            (reading.in_number, reading.in_word) = (false, false);
            return;
        }
        let from = self.symbols.len();
        self.symbols.push(symbol);
        let fresh = || Piece { symbols: from..from + 1, place: place.clone() };
        match self.words.last_mut().filter(|_| reading.in_word) {
            Some(word) => word.extend(from, place),
            None => self.words.push(fresh()),
        }
        reading.in_word = true;
        let goes_on = reading.in_number || (symbol == 'X' && reading.gap <= WIDEST_GAP);
        let last = self.numbers.last_mut().filter(|_| goes_on);
        if symbol.is_ascii_digit() {
            match last {
                Some(number) => number.piece.extend(from, place),
                None => self.numbers.push(Number { piece: fresh(), joined: reading.gap <= WIDEST_GAP }),
            }
            (reading.in_number, reading.gap) = (true, 0);
            return;
        }
        if let (Some(number), 'X') = (last, symbol) {
            number.piece.extend(from, place);
        }
        (reading.in_number, reading.gap) = (false, WIDEST_GAP + 1);
    }

    /// Its letters and digits.
    fn symbols(&self, piece: &Piece) -> &str {
        &self.symbols[piece.symbols.clone()]
    }

    /// Whether these numbers together are somebody's; all but the first are joined to the one before.
    fn is_person(&self, group: &[Number], is_division: &impl Fn(&str) -> bool) -> bool {
        let ([first, ..], [.., last]) = (group, group) else { return false };
        // No symbol stands between joined numbers: it would part them.
        let whole = &self.symbols[first.piece.symbols.start..last.piece.symbols.end];
        if whole.len() > 18 {
            return false;
        }
        let digits = whole.trim_end_matches('X');
        let phone = match digits.len() {
            11 => Some((digits, 0)),
            13 => digits.strip_prefix("86").map(|digits| (digits, 2)),
            15 => digits.strip_prefix("0086").map(|digits| (digits, 4)),
            _ => None,
        };
        if let Some((digits, country)) = phone
            && mobile(digits).is_ok()
        {
            let widths: Vec<usize> =
                group.iter().map(|number| self.symbols(&number.piece).trim_end_matches('X').len()).collect();
            let widths = &widths[usize::from(widths[0] == country)..];
            if widths.len() == 1 || matches!(widths, [3, 4, 4] | [3, 8]) {
                return true;
            }
        }
        match whole.len() {
            18 => match resident_id(whole) {
                Ok(_) => true,
                Err(Fault::Check) => group.len() == 1 && is_province(whole),
                Err(Fault::Shape) => false,
            },
            15 => group.len() == 1 && is_province(whole) && resident_id(whole).is_ok() && !is_division(whole),
            // An X may end something else: 15 digits and a letter.
            _ => false,
        }
    }
}

impl Piece {
    /// The symbol at `at` belongs to it too.
    fn extend(&mut self, at: usize, place: &Range<usize>) {
        (self.symbols.end, self.place.end) = (at + 1, place.end);
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
        _ if is_long_resident_id(bytes) => long_resident_id(text).map(|()| text.to_owned()),
        _ => Err(Fault::Shape),
    }
}

/// Whether these are 17 digits, and one more or an X.
fn is_long_resident_id(bytes: &[u8]) -> bool {
    bytes.len() == 18 && bytes[..17].iter().all(u8::is_ascii_digit) && (bytes[17].is_ascii_digit() || bytes[17] == b'X')
}

/// Checks what [is long enough](is_long_resident_id).
fn long_resident_id(text: &str) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    if !is_date(&text[6..14]) {
        return Err(Fault::Shape);
    }
    if resident_check(&bytes[..17]) == bytes[17] { Ok(()) } else { Err(Fault::Check) }
}

fn resident_check(first17: &[u8]) -> u8 {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let sum: u32 = first17.iter().zip(WEIGHTS).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    b"10X98765432"[(sum % 11) as usize]
}

/// Whether eight digits are a day since 1850.
fn is_date(text: &str) -> bool {
    let year = text[..4].parse::<i32>().ok().filter(|year| *year >= 1850);
    let day = |year| chrono::NaiveDate::from_ymd_opt(year, text[4..6].parse().ok()?, text[6..].parse().ok()?);
    year.and_then(day).is_some()
}

/// Eleven digits from 13 to 19, with or without the country code.
fn mobile(text: &str) -> Result<String, Fault> {
    let digits = text.strip_prefix("+86").or_else(|| text.strip_prefix("0086")).unwrap_or(text);
    is_mobile(digits.as_bytes()).then(|| digits.to_owned()).ok_or(Fault::Shape)
}

fn is_mobile(bytes: &[u8]) -> bool {
    bytes.len() == 11 && matches!(bytes, [b'1', b'3'..=b'9', ..]) && bytes.iter().all(u8::is_ascii_digit)
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
    use proptest::prelude::*;

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
    fn what_looks_canonical_is_left_as_it_is() {
        use IdentifierKind::{CnMobile, CnResidentId, Name, Opaque, Uscc};
        let typed = [
            "",
            "11010519491231002X",
            "11010519491231002x",
            "110105194912310021",
            "110105194913310021",
            "110105174912310021",
            "130503670401001",
            " 11010519491231002X",
            "14106185201",
            "+8614106185201",
            "12106185201",
            "1410618520",
            "91350100M000100Y43",
            "王浩",
            "王 浩",
            "王\u{f900}",
            "Ana",
            "V-1",
            "V 1",
            "４.2E+17",
            "4.2E+17",
            "é",
        ];
        let mut looked = 0;
        for kind in [CnResidentId, CnMobile, Uscc, Name, Opaque] {
            for typed in typed.iter().filter(|typed| is_canonical(kind, typed)) {
                let expected = Canonical::Value { text: (*typed).to_owned(), touched: false };
                assert!(canonical(kind, typed) == expected, "{typed}");
                looked += 1;
            }
        }
        assert!(looked >= 4, "nothing is ever told by a look");
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
    fn numbers_that_lost_their_digits_are_nobodys() {
        for lost in ["4.20104E+17", "4.2e+17", "4E+17", " 1.39E+10", "４.２０１０４Ｅ＋１７", "420104198001010000"]
        {
            assert!(is_spreadsheet_number(lost), "{lost}");
        }
        for other in
            ["11010519491231002X", "42010419800101000", "E+17", "A1E+17", "1.E+17", "4.2E17", "4.2E+170", "12E+17"]
        {
            assert!(!is_spreadsheet_number(other), "{other}");
        }
        // Two people would become one.
        assert!(canonical(IdentifierKind::Opaque, "4.20104E+17") == Canonical::Malformed);
        assert_eq!(value(IdentifierKind::Opaque, "4.2E17").as_deref(), Some("4.2E17"));
    }

    #[test]
    fn days_and_times_of_spreadsheets_are_mended() {
        for (typed, expected) in [
            ("2026/1/8", Some("2026-01-08")),
            ("2026-1-08", Some("2026-01-08")),
            ("2026年1月8日", Some("2026-01-08")),
            ("2026-1-8 9:05", Some("2026-01-08 09:05:00")),
            ("2026/01/08 19:05:03.25", Some("2026-01-08 19:05:03.25")),
            ("2026/1/8 9:05:3+08:00", Some("2026-01-08 09:05:03+08:00")),
            ("2026-01-08T09:05", Some("2026-01-08 09:05:00")),
            // Good as they are.
            ("2026-01-08", None),
            ("2026-01-08 09:05:00", None),
            ("2026-01-08T09:05:00Z", None),
            ("20260108", None),
            // Who could say.
            ("1/8/2026", None),
            ("26/1/8", None),
            ("2026/1", None),
            ("2026/1/8 9", None),
            ("2026/1/8 9:05:00:00", None),
            ("2026/1/8 nine", None),
            ("", None),
        ] {
            assert_eq!(plain_time(typed).as_deref(), expected, "{typed}");
        }
        for serial in ["46030", "46030.0", "46030.37847"] {
            assert!(is_serial_day(serial), "{serial}");
        }
        for other in ["2026", "460300", "4603a", "46030.", "46030.x", "20260108", ""] {
            assert!(!is_serial_day(other), "{other}");
        }
        assert_eq!(plain_text(" ３６.５ "), "36.5");
        assert_eq!(plain_text("－３７．５"), "-37.5");
        assert_eq!(plain_text("２０２６／１／８　９：０５"), "2026/1/8 9:05");
    }

    #[test]
    fn numbers_are_written_out_by_their_digits() {
        for (typed, expected) in [
            ("1.0", "1"),
            ("1.85E+01", "18.5"),
            ("1e2", "100"),
            ("+120e-1", "12"),
            ("-0.5", "-0.5"),
            ("-12.5e-3", "-0.0125"),
            (".5e1", "5"),
            ("5.", "5"),
            ("007", "7"),
            ("0e9", "0"),
            ("9007199254740993.0", "9007199254740993"),
        ] {
            assert_eq!(written_out(typed).as_deref(), Some(expected), "{typed}");
        }
        assert_eq!(written_out("1e64"), Some(format!("1{}", "0".repeat(64))));
        assert_eq!(written_out("1e-64"), Some(format!("0.{}1", "0".repeat(63))));
        for wrong in
            ["", ".", "-", "e5", ".e5", "1e", "1e+", "1.0.0", "1e2.0", "1 0", "--1", "0x1", "1e65", "1e-65", "inf"]
        {
            assert_eq!(written_out(wrong), None, "{wrong}");
        }
        assert_eq!(written_out(&format!("1{}", "0".repeat(64))), None);
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

    /// The search as it was first written: every number and word a text of its own, everything folded.
    mod model {
        use super::*;

        pub(super) fn identifier_spans(text: &str, is_division: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
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

        struct Number {
            symbols: String,
            place: Range<usize>,
            joined: bool,
        }

        fn pieces(text: &str) -> (Vec<Number>, Vec<(String, Range<usize>)>) {
            let mut numbers: Vec<Number> = Vec::new();
            let mut words: Vec<(String, Range<usize>)> = Vec::new();
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

        fn is_person(group: &[Number], is_division: &impl Fn(&str) -> bool) -> bool {
            let whole: String = group.iter().map(|number| number.symbols.as_str()).collect();
            if whole.len() > 18 {
                return false;
            }
            let digits = whole.trim_end_matches('X');
            let widths: Vec<usize> = group.iter().map(|number| number.symbols.trim_end_matches('X').len()).collect();
            let after = |code: usize| if widths[0] == code { widths[1..].to_vec() } else { widths.clone() };
            let phone = match digits.len() {
                11 => Some((digits, widths.clone())),
                13 => digits.strip_prefix("86").map(|digits| (digits, after(2))),
                15 => digits.strip_prefix("0086").map(|digits| (digits, after(4))),
                _ => None,
            };
            if let Some((digits, widths)) = phone
                && mobile(digits).is_ok()
                && (widths.len() == 1 || matches!(widths.as_slice(), [3, 4, 4] | [3, 8]))
            {
                return true;
            }
            match (whole.len(), resident_id(&whole)) {
                (18, Ok(_)) => true,
                (18, Err(Fault::Check)) => group.len() == 1 && is_province(&whole),
                (15, Ok(_)) => group.len() == 1 && is_province(&whole) && !is_division(&whole),
                _ => false,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn what_is_found_is_what_the_first_way_finds(
            parts in proptest::collection::vec(
                prop_oneof![
                    3 => proptest::sample::select(vec![
                        "11010519491231002X", "110105", "19491231", "002X", "002x", "x", "X", "130503670401001",
                        "420191001001001", "139", "1234", "5675", "13912345675", "86", "0086", "+86", "91350100M000100Y43",
                        "91350100M", "000100Y43", "110105194912310021", "１３９", "１２３４５６７５", "٣", "٩١", "Ⅷ", "㏶",
                        "㋀", "½", "Ｘ", "ﬃ",
                    ]).prop_map(str::to_owned),
                    2 => proptest::sample::select(vec![
                        "", "", " ", "-", ".", "_", "/", "  ", "   ", "    ", "\u{200b}", "\u{ad}", "\u{3000}", "、", "·",
                        "\u{2212}", "'", "\"", "\\", ";", "家", "a", "é", "\n", "\u{301}",
                    ]).prop_map(str::to_owned),
                    1 => "[0-9]{1,4}",
                    1 => "[a-zA-Z0-9]{1,6}",
                    1 => any::<char>().prop_map(String::from),
                ],
                0..14,
            ),
        ) {
            let text = parts.concat();
            let is_division = |code: &str| code == "420191001001001";
            prop_assert_eq!(identifier_spans(&text, is_division), model::identifier_spans(&text, is_division), "{:?}", text);
        }
    }
}
