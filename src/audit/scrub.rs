//! SQL as the log may keep it: identifiers in literals, names and comments are replaced before anything
//! is written.

use crate::validate::canonical::identifier_spans;
use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};

/// A text that may be kept, and whether it still says what was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// The text with identifiers replaced; empty where it could not be read at all.
    pub text: String,
    /// Whether asking the text again would ask the same.
    pub reproducible: bool,
}

/// Replaces what reads like an identifier of a person. `is_division` tells division codes, which look
/// like old resident ids, from the latter.
pub fn scrub(sql: &str, is_division: impl Fn(&str) -> bool) -> Scrubbed {
    let tokens = |unescape: bool| Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(unescape).tokenize();
    // As written, to be kept; and as the engine reads it, to be searched.
    let (Ok(written), Ok(read)) = (tokens(false), tokens(true)) else {
        return Scrubbed { text: String::new(), reproducible: false };
    };
    let found = |text: &str| identifier_spans(text, &is_division).len();
    // An identifier may be typed in parts and put together by the engine: then no literal is kept.
    let literals: String = read.iter().filter_map(literal).collect();
    let in_parts = found(&literals) > read.iter().filter_map(literal).map(found).sum();
    let mut text = String::with_capacity(sql.len());
    let mut reproducible = true;
    for (written, read) in written.iter().zip(&read) {
        // Comments say nothing to the engine and may hold anything.
        if let Token::Whitespace(_) = written {
            text.push(' ');
            continue;
        }
        let plain = written.to_string();
        // A text may be that of an array, in which a backslash stands before any letter and is none of it.
        let hidden = |read: &str| found(read).max(found(&read.replace('\\', "")));
        let escaped = literal(read).is_some_and(|read| hidden(read) > found(&plain));
        let cleaned = match literal(read).is_some() && in_parts || escaped || is_opaque(written) {
            true => REPLACED_LITERAL.to_owned(),
            false => clean(&plain, &is_division),
        };
        reproducible &= cleaned == plain;
        text.push_str(&cleaned);
    }
    Scrubbed { text, reproducible }
}

const REPLACED_LITERAL: &str = "'<identifier>'";

/// The text of a literal.
fn literal(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text)
        | Token::NationalStringLiteral(text)
        | Token::EscapedStringLiteral(text)
        | Token::UnicodeStringLiteral(text)
        | Token::Number(text, _) => Some(text),
        Token::DollarQuotedString(quoted) => Some(&quoted.value),
        _ => None,
    }
}

/// Bytes and exponents hide digits from the eye that looks for them.
fn is_opaque(token: &Token) -> bool {
    match token {
        Token::HexStringLiteral(_) => true,
        Token::Number(text, _) => text.len() > 10 && text.contains(['e', 'E', '.']),
        _ => false,
    }
}

fn clean(written: &str, is_division: &impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let mut from = 0;
    for span in identifier_spans(written, is_division) {
        out.push_str(&written[from..span.start]);
        out.push_str("<identifier>");
        from = span.end;
    }
    out + &written[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sql: &str) -> Scrubbed {
        scrub(sql, |code| code == "420191001001001")
    }

    #[test]
    fn identifiers_are_replaced_wherever_they_hide() {
        for sql in [
            "SELECT 1 FROM t WHERE id_no = '11010519491231002X'",
            "SELECT 1 FROM t WHERE id_no = '110105 19491231 002x'",
            "SELECT 1 FROM t WHERE id_no LIKE '%110105194912310020%' -- 11010519491231002X",
            "SELECT 1 AS \"14106185201\" FROM t",
            "SELECT 14106185201",
            "SELECT '１４１０６１８５２０１'",
            "SELECT 1 /* 14106185201 */ FROM t WHERE p = 'call 14106185201 now'",
            "SELECT '110105'||'194912310'||'02X'",
            "SELECT '141061' || '85201'",
            "SELECT $a$ 110105 19491231 002X $a$",
            "SELECT 1.4106185201e10",
            "SELECT x'3134313036313835323031'",
            "SELECT x14106185201 FROM t14106185201",
            "SELECT 1 FROM t WHERE p LIKE '%ID110105194912310020%'",
            "SELECT E'\\x31410618\\x35201'",
            "SELECT 1 FROM t WHERE p = ANY ('{a,1410618\\5201}')",
            "SELECT 1 FROM t WHERE p = ANY (E'{\"1410\\\\61\\\\85201\"}')",
        ] {
            let kept = kept(sql);
            for raw in ["19491231", "1949", "14106185201", "141061", "4106185", "１４１", "313431"] {
                assert!(!kept.text.contains(raw), "{sql} kept {}", kept.text);
            }
        }
    }

    #[test]
    fn the_rest_is_kept_as_asked() {
        let sql = "SELECT count(*), 'it''s' FROM cdc.cases WHERE grid_code = '420191001001001' AND n > 37.3 AND d = DATE '2026-01-05'";
        assert_eq!(kept(sql), Scrubbed { text: sql.into(), reproducible: true });
        assert_eq!(kept("SELECT 'unfinished"), Scrubbed { text: String::new(), reproducible: false });
    }
}
