//! SQL as the log may keep it: identifiers in literals, names and comments are replaced before anything
//! is written.

mod parts;
mod plain;

use std::borrow::Cow;

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};

use crate::validate::canonical::identifier_spans;

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
    // Most statements are plain and hold nothing, which a look tells.
    if let Some(text) = plain::read(sql, &is_division) {
        return Scrubbed { text, reproducible: true };
    }
    // As written, to be kept.
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize();
    let Ok(tokens) = tokens else {
        return Scrubbed { text: String::new(), reproducible: false };
    };
    let found = |text: &str| identifier_spans(text, &is_division).len();
    // An identifier may be typed in parts and put together by the engine: then no literal is kept.
    let in_parts = parts::hold_one(&tokens, &found);
    let mut text = String::with_capacity(sql.len());
    let mut reproducible = true;
    for token in &tokens {
        // Comments say nothing to the engine and may hold anything.
        if let Token::Whitespace(_) = token {
            text.push(' ');
            continue;
        }
        let written = token.to_string();
        // A text may be that of an array, in which a backslash stands before any letter and is none of it.
        let hidden = |read: &str| found(read).max(found(&read.replace('\\', "")));
        let read = literal(token);
        let escaped = read.as_deref().is_some_and(|read| hidden(read) > found(&written));
        let cleaned = match read.is_some() && in_parts || escaped || is_opaque(token) {
            true => REPLACED_LITERAL.to_owned(),
            false => clean(&written, &is_division),
        };
        reproducible &= cleaned == written;
        text.push_str(&cleaned);
    }
    Scrubbed { text, reproducible }
}

const REPLACED_LITERAL: &str = "'<identifier>'";

/// The text of a literal as the engine reads it. In a text between single quotes, two of them are one, and in a number
/// underscores are nothing; what is escaped otherwise has been read by the tokenizer.
fn literal(token: &Token) -> Option<Cow<'_, str>> {
    match token {
        Token::SingleQuotedString(text) | Token::NationalStringLiteral(text) if text.contains('\'') => {
            Some(Cow::Owned(text.replace("''", "'")))
        }
        Token::Number(text, _) if text.contains('_') => Some(Cow::Owned(text.replace('_', ""))),
        Token::SingleQuotedString(text)
        | Token::NationalStringLiteral(text)
        | Token::EscapedStringLiteral(text)
        | Token::UnicodeStringLiteral(text)
        | Token::Number(text, _) => Some(Cow::Borrowed(text)),
        Token::DollarQuotedString(quoted) => Some(Cow::Borrowed(&quoted.value)),
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
    use proptest::prelude::*;

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
            "SELECT '141061' || '85201' LIMIT 10",
            "SELECT 1, '141061' || ('852' || 01::text), 7",
            "SELECT 1, '141061'\n'85201'",
            "SELECT concat('141061', '85201'), 7",
            "SELECT $a$ 110105 19491231 002X $a$",
            "SELECT 1.4106185201e10",
            "SELECT x'3134313036313835323031'",
            "SELECT x14106185201 FROM t14106185201",
            "SELECT 1410_6185_201",
            "SELECT 1410_61::text || 8_5201",
            "SELECT 1101_0519_4912_3100_21",
            "SELECT 1 FROM t WHERE p LIKE '%ID110105194912310020%'",
            "SELECT E'\\x31410618\\x35201'",
            "SELECT 1 FROM t WHERE p = ANY ('{a,1410618\\5201}')",
            "SELECT 1 FROM t WHERE p = ANY (E'{\"1410\\\\61\\\\85201\"}')",
        ] {
            let kept = kept(sql);
            for raw in
                ["19491231", "1949", "14106185201", "141061", "4106185", "１４１", "313431", "1410_", "8_5201", "4912"]
            {
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

    /// The search as it was first written: the statement read twice, and every token written out. Underscores in numbers
    /// were seen through later.
    fn model(sql: &str, is_division: impl Fn(&str) -> bool) -> Scrubbed {
        fn literal(token: &Token) -> Option<String> {
            match token {
                Token::SingleQuotedString(text)
                | Token::NationalStringLiteral(text)
                | Token::EscapedStringLiteral(text)
                | Token::UnicodeStringLiteral(text) => Some(text.clone()),
                Token::Number(text, _) => Some(text.replace('_', "")),
                Token::DollarQuotedString(quoted) => Some(quoted.value.clone()),
                _ => None,
            }
        }
        let tokens = |unescape: bool| Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(unescape).tokenize();
        let (Ok(written), Ok(read)) = (tokens(false), tokens(true)) else {
            return Scrubbed { text: String::new(), reproducible: false };
        };
        assert_eq!(written.len(), read.len());
        let found = |text: &str| identifier_spans(text, &is_division).len();
        let literals: String = read.iter().filter_map(literal).collect();
        let in_all = found(&literals) > read.iter().filter_map(literal).map(|literal| found(&literal)).sum::<usize>();
        // This was seen through later, too.
        let in_parts = in_all || parts::hold_one(&read, &found);
        let mut text = String::new();
        let mut reproducible = true;
        for (written, read) in written.iter().zip(&read) {
            if let Token::Whitespace(_) = written {
                text.push(' ');
                continue;
            }
            let plain = written.to_string();
            let hidden = |read: &str| found(read).max(found(&read.replace('\\', "")));
            let escaped = literal(read).is_some_and(|read| hidden(&read) > found(&plain));
            let cleaned = match literal(read).is_some() && in_parts || escaped || is_opaque(written) {
                true => REPLACED_LITERAL.to_owned(),
                false => clean(&plain, &is_division),
            };
            reproducible &= cleaned == plain;
            text.push_str(&cleaned);
        }
        Scrubbed { text, reproducible }
    }

    fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = String> {
        proptest::sample::select(words).prop_map(str::to_owned)
    }

    /// What statements are made of, and what hides something in them.
    fn part() -> impl Strategy<Value = String> {
        let plain = one_of(&[
            "SELECT",
            "FROM",
            "cdc.cases",
            "t",
            "grid_code",
            "'420191001001001'",
            "'open'",
            "37.5",
            "(",
            ")",
            ",",
            "=",
            "<>",
            "!=",
            "<",
            ">=",
            "||",
            "::",
            "text",
            "$1",
            ";",
            "*",
            "-",
            "+",
            "/",
            "%",
            "a.b",
            "[1]",
            "\"Id\"",
            "DATE",
            "'2026-01-05'",
            "a_very_long_name_of_some_column",
            "x1",
            "_a",
            ".",
        ]);
        let identifiers = one_of(&[
            "14106185201",
            "'14106185201'",
            "'11010519491231002X'",
            "'110105'",
            "'194912310'",
            "'02X'",
            "141061",
            "85201",
            "'１４１０６１８５２０１'",
            "'١٤١٠٦'",
            "'91350100M000100Y43'",
            "'91350100M'",
            "'000100Y43'",
            "x14106185201",
            "\"14106185201\"",
            "$14106185201",
            "1.4106185201e10",
            "1410618.5201",
            "1e5",
            "14106185201L",
            "'130503670401001'",
            "1410_6185_201",
        ]);
        let literals = one_of(&[
            r"E'\x31410618\x35201'",
            r"E'it\'s'",
            r"e'14106\u0031'",
            r"U&'\0031\0034106185201'",
            "u&'1410''6'",
            "N'1''4'",
            "n'14106185201'",
            "X'3134'",
            r"x'31\'34'",
            "B'01'",
            "b\"01\"",
            "'it''s'",
            "'14106''185201'",
            "''",
            "''''",
            "\"a\"\"b\"",
            "\"\"",
            "$$14106185201$$",
            "$a$ 1410 $b$ 6 $a$",
            "$1$",
            "$",
            r"'{a,1410618\5201}'",
            r#"'{"1410\61\85201"}'"#,
            r#"E'{"1410\\61\\85201"}'"#,
            r"'\'",
            "'a\nb'",
            "'王浩'",
            "名",
            "0x1f",
            "0x",
            ".5",
            "1.",
            "1..2",
            "._",
            "t._a",
        ]);
        let rest = one_of(&[
            "-- 14106185201\n",
            "--",
            "/* 14106185201 */",
            "/* /* */",
            "*/",
            "/*! 1 */",
            "'",
            "\"",
            "\\",
            "`",
            "?",
            "?|",
            "@",
            "@-",
            "|&",
            "<|",
            "|",
            "~*",
            "!~~*",
            "->>",
            "#>",
            "{",
            "}",
            ":",
            ":=",
            "&&",
            "^@",
            "\r",
            "\r\n",
            "\u{a0}",
            "\u{3000}",
            "\u{200b}",
            "é",
            "\0",
        ]);
        let blank = one_of(&[" ", " ", "\n", "\t", ""]);
        prop_oneof![
            4 => plain,
            4 => blank,
            2 => identifiers,
            2 => literals,
            1 => rest,
            1 => "[0-9a-zA-Z_.$'\"]{1,5}",
            1 => any::<char>().prop_map(String::from),
        ]
    }

    fn assert_like_the_model(sql: &str) {
        let is_division = |code: &str| code == "420191001001001";
        assert_eq!(scrub(sql, is_division), model(sql, is_division), "{sql:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn what_is_kept_is_what_the_first_way_keeps(parts in proptest::collection::vec(part(), 0..16)) {
            assert_like_the_model(&parts.concat());
            assert_like_the_model(&parts.join(" "));
        }

        #[test]
        fn so_it_is_of_statements_that_are_mostly_plain(
            before in proptest::collection::vec(
                one_of(&["SELECT ", "a, ", "'x' ", "12 ", "(b) ", "cdc.t ", "< 3.5 "]),
                0..8,
            ),
            part in part(),
            after in proptest::collection::vec(one_of(&[" FROM t", " = 'y'", "5", "'", "\"", " 1", ".", "$", "_"]), 0..5),
        ) {
            assert_like_the_model(&[before.concat(), part, after.concat()].concat());
        }
    }
}
