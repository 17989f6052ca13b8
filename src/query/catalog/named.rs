//! Texts that plainly name a table which is none of the catalogue's. Every statement passes by here on its way to the
//! data, so it is read once, byte by byte, and not parsed. Knows a few words of SQL; whatever it does not know it leaves
//! to the parser.

use super::is_of_the_system;

/// Words that may follow a table's name. After others, what looks like a name may be something else, as `LATERAL` is.
const FOLLOWING: [&str; 15] = [
    "where", "group", "order", "limit", "having", "as", "join", "inner", "left", "right", "full", "cross", "offset",
    "union", "fetch",
];

/// Whether the outermost query of a text certainly reads a table that is none of the catalogue's. Where it does not show
/// at first sight, this says no.
pub(super) fn reads_another_table(sql: &str) -> bool {
    // These could end a text in quotes elsewhere than where the next quote is.
    if sql.contains('\\') {
        return false;
    }
    let bytes = sql.as_bytes();
    let (mut at, mut depth, mut before, mut has_common_tables) = (0, 0_usize, "", false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\'' | b'"' => match bytes[at + 1..].iter().position(|other| *other == byte) {
                Some(length) => at += length + 2,
                None => return false,
            },
            b'-' | b'/' if matches!(bytes.get(at + 1), Some(b'-' | b'*')) => return false,
            b'$' => match after_a_parameter(&bytes[at + 1..]) {
                Some(length) => at += length + 1,
                None => return false,
            },
            _ if is_of_a_word(byte) && !byte.is_ascii_digit() => {
                let word = word(&sql[at..]);
                at += word.len();
                // After these two it does not begin the tables.
                let is_other = before == "." || before.eq_ignore_ascii_case("distinct");
                if depth == 0 && word.eq_ignore_ascii_case("from") && !is_other {
                    return is_another_table(&sql[at..], has_common_tables);
                }
                has_common_tables |= word.eq_ignore_ascii_case("with");
                before = word;
                continue;
            }
            blank if blank.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'.' => {
                at += 1;
                before = ".";
                continue;
            }
            b'(' => {
                depth += 1;
                at += 1;
            }
            b')' => {
                let Some(outer) = depth.checked_sub(1) else { return false };
                depth = outer;
                at += 1;
            }
            _ => at += 1,
        }
        before = "";
    }
    false
}

/// Whether what follows `FROM` begins with the name of a table that is none of the catalogue's.
fn is_another_table(text: &str, has_common_tables: bool) -> bool {
    let Some((first, rest)) = name(text.trim_ascii_start()) else { return false };
    let Some(rest) = rest.strip_prefix('.') else {
        // It may be the name of a table that the query makes itself.
        return !has_common_tables && is_followed(rest) && !is_of_the_system(&[first]);
    };
    let Some((second, rest)) = name(rest) else { return false };
    // There may be a third part, or the arguments of a function, also behind a comment.
    let is_whole = !rest.trim_ascii_start().starts_with(['.', '(', '-', '/']);
    is_whole && !is_of_the_system(&[first, second])
}

/// Whether a table's name ends here.
fn is_followed(rest: &str) -> bool {
    let parted = rest.trim_ascii_start();
    match parted.bytes().next() {
        None | Some(b',' | b';') => true,
        Some(_) if parted.len() < rest.len() => {
            FOLLOWING.iter().any(|following| word(parted).eq_ignore_ascii_case(following))
        }
        Some(_) => false,
    }
}

/// The name that a text begins with, folded as PostgreSQL does, and what comes after it.
fn name(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (name, rest) = quoted.split_once('"')?;
        let is_plain = !name.is_empty() && !rest.starts_with('"');
        return is_plain.then(|| (name.to_owned(), rest));
    }
    let (name, rest) = text.split_at(word(text).len());
    let is_plain = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') && name.is_ascii();
    (is_plain && !name.contains('$')).then(|| (name.to_ascii_lowercase(), rest))
}

/// The word that a text begins with; nothing where it begins with something else.
fn word(text: &str) -> &str {
    let length = text.bytes().position(|byte| !is_of_a_word(byte) && byte != b'$');
    &text[..length.unwrap_or(text.len())]
}

/// Whether a byte belongs to a word, be it one of a letter beyond ASCII.
fn is_of_a_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// How long the number of a parameter is, after its `$`; nothing where that may begin a text instead.
fn after_a_parameter(bytes: &[u8]) -> Option<usize> {
    let length = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let ends = bytes.get(length).is_none_or(|next| !is_of_a_word(*next) && *next != b'$');
    (length > 0 && ends).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::catalog::names_the_system_only;

    #[test]
    fn questions_about_data_are_plain() {
        for sql in [
            "SELECT * FROM visits",
            "select day from Visits where person = $1 and note = 'FROM pg_class; it''s -- no'",
            "SELECT extract(year FROM c.day), count(*) AS n\nFROM community.visits c\nWHERE a IS DISTINCT FROM b",
            "SELECT a FROM \"community\".\"visits\" ORDER BY 1 LIMIT 3;",
            "WITH x AS (SELECT 1) SELECT * FROM community.visits, x",
            "SELECT case_id, '社区' FROM cases WHERE grid_code = '420191001001'",
            "EXPLAIN SELECT * FROM visits, pg_class",
        ] {
            assert!(reads_another_table(sql), "{sql}");
            assert!(!names_the_system_only(sql), "{sql}");
        }
    }

    /// Most of these are about the catalogue alone. None of them may be kept from the parser.
    #[test]
    fn what_does_not_show_at_first_sight_is_left_to_the_parser() {
        for sql in [
            "",
            "SELECT 1",
            "SELECT * FROM pg_class WHERE relname = 'visits'",
            "SELECT * FROM PG_CATALOG.pg_class c, information_schema.tables",
            "SELECT * FROM hub.pg_catalog.pg_class",
            "SELECT * FROM hub.pg_catalog /* the catalogue */ .pg_class",
            "SELECT * FROM hub.pg_catalog -- the catalogue\n.pg_class",
            "SELECT * FROM public.generate_series /* three */ (1, 3)",
            "SELECT * FROM \"pg_class\"",
            "WITH visits AS (SELECT 1 AS a) SELECT * FROM visits",
            "WITH a AS (SELECT 1), b AS (SELECT * FROM a) SELECT * FROM b WHERE true",
            "SELECT * FROM generate_series(1, 3)",
            "SELECT * FROM LATERAL generate_series(1, 3)",
            "SELECT * FROM pg_catalog.generate_series(1, 3)",
            "SELECT * FROM (SELECT * FROM community.visits) v",
            "SELECT 1 IS DISTINCT FROM c.oid FROM pg_class c",
            "SELECT c.oid IS NOT DISTINCT\nFROM c.relname FROM pg_class c",
            "SELECT extract(year FROM a.b) FROM pg_class",
            "SELECT c.from visits, oid FROM pg_class c",
            "SELECT E'it\\'s', ' FROM community.visits ' FROM pg_class",
            "SELECT $$ ' FROM community.visits $$ FROM pg_class",
            "SELECT $a$ ' FROM community.visits $a$ FROM pg_class",
            "SELECT $1$ ' FROM community.visits $1$ FROM pg_class",
            "SELECT 1 -- FROM community.visits\nFROM pg_class",
            "SELECT 1 /* FROM community.visits */ FROM pg_class",
            "SELECT ' FROM community.visits' FROM pg_class",
            "SELECT \" FROM community.visits\" FROM pg_class",
            "SELECT 'open FROM community.visits",
            "SELECT from_ FROM pg_class",
            "SELECT a$from.b FROM pg_class",
            "SELECT * FROM \"a\"\"b\".c",
            "SELECT * FROM ONLY pg_class",
            "SELECT 1) FROM community.visits",
        ] {
            assert!(!reads_another_table(sql), "{sql}");
        }
    }
}
