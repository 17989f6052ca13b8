//! Statements that are plain: a look at their bytes tells where tokens begin and end, and that none holds an identifier.
//! Whatever is not plain is left to the tokenizer, so that nothing here knows more of SQL than the commonest of it.

use crate::validate::canonical::identifier_spans;

/// No identifier has fewer letters and digits: a phone number has so many.
const SHORTEST: usize = 11;

/// What puts texts together.
const JOINING: [&str; 3] = ["||", "concat", "concat_ws"];

/// What a plain statement without identifiers is kept as: itself, but for blanks and for `!=`, which is `<>`. `None`
/// where it is not plain or may hold something.
pub fn read(sql: &str, is_division: &impl Fn(&str) -> bool) -> Option<String> {
    let may_hold =
        |text: &str| (text.len() >= SHORTEST || !text.is_ascii()) && !identifier_spans(text, is_division).is_empty();
    let bytes = sql.as_bytes();
    let mut kept = String::with_capacity(sql.len());
    // An identifier may be typed in parts.
    let mut literals = String::new();
    let mut follows_literal = false;
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        let end = match first {
            b' ' | b'\t' | b'\n' => {
                kept.push(' ');
                at += 1;
                continue;
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => word(bytes, at)?,
            b'0'..=b'9' => number(bytes, at)?,
            b'\'' | b'"' => quoted(bytes, at)?,
            b'$' => parameter(bytes, at)?,
            b'.' => period(bytes, at)?,
            b'(' | b')' | b',' | b';' | b'[' | b']' => at + 1,
            _ => operator(bytes, at)?,
        };
        let token = sql.get(at..end)?;
        if may_hold(token) {
            return None;
        }
        let is_literal = matches!(first, b'\'' | b'0'..=b'9');
        match first {
            // The engine puts these together.
            _ if is_literal && follows_literal => return None,
            b'\'' => literals.push_str(sql.get(at + 1..end - 1)?),
            b'0'..=b'9' => literals.push_str(token),
            _ if JOINING.iter().any(|joining| token.eq_ignore_ascii_case(joining)) => return None,
            _ => {}
        }
        follows_literal = is_literal;
        kept.push_str(if token == "!=" { "<>" } else { token });
        at = end;
    }
    (!may_hold(&literals)).then_some(kept)
}

/// Where what belongs together ends.
fn end(bytes: &[u8], from: usize, belongs: impl Fn(&u8) -> bool) -> usize {
    from + bytes.iter().skip(from).take_while(|byte| belongs(byte)).count()
}

/// `end`, where nothing follows there that could change what stands before it.
fn unless_followed(bytes: &[u8], end: usize, by: impl Fn(&u8) -> bool) -> Option<usize> {
    (!bytes.get(end).is_some_and(by)).then_some(end)
}

/// A name or a keyword. Before a quote it may say how the text is written, as in `E'…'` and `U&'…'`.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let end = end(bytes, at, is_of_word);
    unless_followed(bytes, end, |byte| !byte.is_ascii() || matches!(byte, b'\'' | b'"' | b'&' | b'$'))
}

/// A number without exponent, and not so long that its point could hide an identifier.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    const LONGEST_WITH_POINT: usize = 10;
    let whole = end(bytes, at, u8::is_ascii_digit);
    let ends = match bytes.get(whole) {
        Some(b'.') => end(bytes, whole + 1, u8::is_ascii_digit),
        _ => whole,
    };
    if ends == whole + 1 || (ends > whole && ends - at > LONGEST_WITH_POINT) {
        return None;
    }
    unless_followed(bytes, ends, |byte| !byte.is_ascii() || is_of_word(byte) || matches!(byte, b'.' | b'$'))
}

/// A text or a quoted name, without quotes and backslashes in it.
fn quoted(bytes: &[u8], at: usize) -> Option<usize> {
    let quote = bytes.get(at)?;
    let closing = end(bytes, at + 1, |byte| byte != quote && *byte != b'\\');
    (bytes.get(closing) == Some(quote)).then_some(())?;
    unless_followed(bytes, closing + 1, |byte| byte == quote)
}

/// A parameter such as `$1`.
fn parameter(bytes: &[u8], at: usize) -> Option<usize> {
    let ends = end(bytes, at + 1, u8::is_ascii_digit);
    (ends > at + 1).then_some(())?;
    unless_followed(bytes, ends, |byte| !byte.is_ascii() || is_of_word(byte) || *byte == b'$')
}

/// A point between names.
fn period(bytes: &[u8], at: usize) -> Option<usize> {
    unless_followed(bytes, at + 1, |byte| !byte.is_ascii() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.'))
}

/// One of the usual operators, for itself.
fn operator(bytes: &[u8], at: usize) -> Option<usize> {
    let end = end(bytes, at, |byte| b"=<>+-*/|:!%&^~@#?`".contains(byte));
    match bytes.get(at..end)? {
        b"=" | b"<" | b">" | b"<=" | b">=" | b"<>" | b"!=" | b"+" | b"-" | b"*" | b"/" | b"%" | b"||" | b"::" => {
            Some(end)
        }
        _ => None,
    }
}

fn is_of_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_statements_are_plain_and_what_is_not_is_left_to_the_tokenizer() {
        let read = |sql| read(sql, &|code: &str| code == "420191001001001");
        for sql in [
            "SELECT case_id, \"Id\" FROM cdc.cases WHERE grid_code = '420191001001001' AND n >= 37.3 LIMIT 20",
            "SELECT count(*), a[1], -5, x::text, '甲' FROM t AS t2 WHERE d = DATE '2026-01-05' AND p = $1;",
            "SELECT t.*, n / 2 % 3 FROM t WHERE name LIKE '%王%' AND a <> 'ab' AND b < 1 GROUP BY 1",
        ] {
            assert_eq!(read(sql).as_deref(), Some(sql));
        }
        assert_eq!(read("SELECT\n1\tWHERE a!=b").as_deref(), Some("SELECT 1 WHERE a<>b"));
        for sql in [
            "SELECT 'it''s'",
            "SELECT 'a\\b'",
            "SELECT 'a",
            "SELECT \"a\"\"b\"",
            "SELECT E'a'",
            "SELECT u&'a'",
            "SELECT n'a'",
            "SELECT b\"1\"",
            "SELECT 1 -- a",
            "SELECT 1 /* a */",
            "SELECT 1\r\n",
            "SELECT 1e5",
            "SELECT 'a' || x",
            "SELECT 'a' 'b'",
            "SELECT Concat(a, 'b')",
            "SELECT 1_0",
            "SELECT 1.",
            "SELECT 1.2.3",
            "SELECT .5",
            "SELECT 0x1f",
            "SELECT 1L",
            "SELECT 1.1234567890",
            "SELECT $$a$$",
            "SELECT $a$a$a$",
            "SELECT $1$a$1$",
            "SELECT t._a",
            "SELECT a -> b",
            "SELECT 1--1",
            "SELECT a<|b",
            "SELECT 名 FROM t",
            "SELECT a\u{a0}b",
            "SELECT 14106185201",
            "SELECT x14106185201",
            "SELECT $14106185201",
            "SELECT '141061', '85201'",
            "SELECT 141061, '85201'",
            "SELECT '１４１０６１８５２０１'",
            "SELECT '91350100M', '000100Y43'",
        ] {
            assert_eq!(read(sql), None, "{sql}");
        }
    }
}
