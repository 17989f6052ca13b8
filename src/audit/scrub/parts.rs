//! Identifiers that are typed in parts, and put together by the engine.

use std::borrow::Cow;

use datafusion::sql::sqlparser::tokenizer::Token;

use super::literal;

/// Functions that put texts together.
const JOINING: [&str; 2] = ["concat", "concat_ws"];

/// The most parts of one identifier: none has more characters.
const MOST: usize = 18;

/// The longest text in which one is looked for that was put together.
const LONGEST: usize = 256;

/// Whether literals together hold an identifier that none of them holds by itself: all of a statement, in whatever way
/// the engine puts them together, or some that stand side by side in a place where it does.
pub fn hold_one(tokens: &[Token], found: &impl Fn(&str) -> usize) -> bool {
    let literals: Vec<Cow<'_, str>> = tokens.iter().filter_map(literal).collect();
    let each = |literals: &[Cow<'_, str>]| literals.iter().map(|literal| found(literal)).sum::<usize>();
    let is_more = |literals: &[Cow<'_, str>]| found(&literals.concat()) > each(literals);
    is_more(&literals)
        || put_together(tokens).iter().any(|run| {
            (0..run.len()).any(|from| {
                let ends = (from + 2)..=run.len().min(from + MOST);
                let is_short =
                    |end: &usize| run[from..*end].iter().map(|literal| literal.len()).sum::<usize>() <= LONGEST;
                ends.take_while(is_short).any(|end| is_more(&run[from..end]))
            })
        })
}

/// The literals that the engine puts together: with `||` between them or nothing but blanks, whatever types and brackets
/// stand there besides, or as arguments of a function that does so.
fn put_together(tokens: &[Token]) -> Vec<Vec<Cow<'_, str>>> {
    let mut runs: Vec<Vec<Cow<'_, str>>> = Vec::new();
    let (mut goes_on, mut before) = (false, None);
    // For each open bracket, whether what stands in it is joined.
    let mut brackets: Vec<bool> = Vec::new();
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        if let Some(literal) = literal(token) {
            match runs.last_mut().filter(|_| goes_on) {
                Some(run) => run.push(literal),
                None => runs.push(vec![literal]),
            }
            goes_on = true;
        } else {
            match token {
                Token::LParen => brackets.push(is_joining(before) || brackets.last() == Some(&true)),
                Token::RParen => drop(brackets.pop()),
                Token::Comma => goes_on &= brackets.last() == Some(&true),
                Token::StringConcat | Token::DoubleColon => {}
                Token::Word(_) if is_joining(Some(token)) || before == Some(&Token::DoubleColon) => {}
                _ => goes_on = false,
            }
        }
        before = Some(token);
    }
    runs.retain(|run| run.len() > 1);
    runs
}

fn is_joining(token: Option<&Token>) -> bool {
    matches!(token, Some(Token::Word(word)) if JOINING.iter().any(|name| word.value.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::PostgreSqlDialect, tokenizer::Tokenizer};

    use super::*;

    fn runs(sql: &str) -> Vec<String> {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().unwrap();
        put_together(&tokens).iter().map(|run| run.join("+")).collect()
    }

    #[test]
    fn literals_are_put_together_where_the_engine_does() {
        for (sql, together) in [
            ("SELECT 'a' || 'b' LIMIT 10", &["a+b"][..]),
            ("SELECT 1, 'a'||('b'||'c'), 2", &["a+b+c"]),
            ("SELECT 1::text || '2' AS x, 3", &["1+2"]),
            ("SELECT 'a'\n'b'", &["a+b"]),
            ("SELECT concat('a', 'b'), 7", &["a+b"]),
            ("SELECT concat('a', upper('b')), 7", &[]),
            ("SELECT CONCAT_WS('-', 'a', ('b')), 'c'", &["-+a+b"]),
            ("SELECT 'a', 'b' FROM t WHERE n IN (1, 2, 3)", &[]),
            ("SELECT 'a' = 'b', 1 + 2, 'a' || x || 'b'", &[]),
        ] {
            assert_eq!(runs(sql), together, "{sql}");
        }
    }
}
