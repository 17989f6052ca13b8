//! SQL as the log may keep it: identifiers in literals, names and comments are replaced before anything
//! is written.

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};
use unicode_normalization::UnicodeNormalization;

use crate::{
    dataset::IdentifierKind,
    validate::canonical::{Canonical, canonical, identifier_spans},
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
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize() else {
        return Scrubbed { text: String::new(), reproducible: false };
    };
    let mut text = String::with_capacity(sql.len());
    let mut reproducible = true;
    for token in tokens {
        // Comments say nothing to the engine and may hold anything.
        if let Token::Whitespace(_) = token {
            text.push(' ');
            continue;
        }
        let written = token.to_string();
        let cleaned = clean(&written, &is_division);
        reproducible &= cleaned == written;
        text.push_str(&cleaned);
    }
    Scrubbed { text, reproducible }
}

fn clean(written: &str, is_division: &impl Fn(&str) -> bool) -> String {
    let folded: String = written.nfkc().collect();
    let inner = folded.trim_matches(['\'', '"']);
    if !is_division(inner) && is_identifier(inner) {
        return folded.replacen(inner, "<identifier>", 1);
    }
    let spans = identifier_spans(&folded);
    if spans.is_empty() {
        return written.to_owned();
    }
    let mut out = String::new();
    let mut from = 0;
    for span in spans {
        out.push_str(&folded[from..span.start]);
        out.push_str("<identifier>");
        from = span.end;
    }
    out + &folded[from..]
}

/// Whether the whole literal, however it is spaced, is an identifier; ids with a wrong check count, as
/// they are somebody's with a typing error.
fn is_identifier(text: &str) -> bool {
    let of = |kind| canonical(kind, text);
    matches!(of(IdentifierKind::CnResidentId), Canonical::Value { .. } | Canonical::BadCheck)
        || matches!(of(IdentifierKind::CnMobile), Canonical::Value { .. })
        || matches!(of(IdentifierKind::Uscc), Canonical::Value { .. })
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
        ] {
            let kept = kept(sql);
            for raw in ["194912310", "1949", "14106185201", "１４１"] {
                assert!(!kept.text.contains(raw), "{sql} kept {}", kept.text);
            }
        }
    }

    #[test]
    fn the_rest_is_kept_as_asked() {
        let sql = "SELECT count(*) FROM cdc.cases WHERE grid_code = '420191001001001' AND n > 37.3";
        assert_eq!(kept(sql), Scrubbed { text: sql.into(), reproducible: true });
        assert_eq!(kept("SELECT 'unfinished"), Scrubbed { text: String::new(), reproducible: false });
    }
}
