//! The statement firewall: exactly one query, which neither writes nor locks nor names a target, and no
//! larger than planning can bear.
//!
//! The engine plans by recursion and inlines every mention of a common table, so what is deep or doubles
//! itself is refused before it is planned.

use std::{collections::HashMap, ops::ControlFlow};

use datafusion::{
    common::format::ExplainStatementOptions,
    sql::{
        parser::Statement,
        sqlparser::{
            ast::{self, Query, Select, TableFactor, Visit, Visitor},
            dialect::PostgreSqlDialect,
            keywords::Keyword,
            tokenizer::{Token, Tokenizer},
        },
    },
};

use crate::error::{Error, Result};

/// Most operators in a statement: each may be one level of an expression.
const OPERATORS: usize = 400;

/// Most calls and subqueries inside each other: the parser tries each twice, so the work doubles with every
/// one.
const CALLS: usize = 10;

/// Most set operations in a statement.
const SET_OPERATIONS: usize = 60;

/// Most windows in a statement.
const WINDOWS: usize = 50;

/// Words that put one expression inside another, as operators do.
const NESTING: [Keyword; 20] = [
    Keyword::AND,
    Keyword::AT,
    Keyword::BETWEEN,
    Keyword::CASE,
    Keyword::COLLATE,
    Keyword::DIV,
    Keyword::ILIKE,
    Keyword::IN,
    Keyword::IS,
    Keyword::LIKE,
    Keyword::NOT,
    Keyword::NOTNULL,
    Keyword::OPERATOR,
    Keyword::OR,
    Keyword::OVERLAPS,
    Keyword::REGEXP,
    Keyword::RLIKE,
    Keyword::SIMILAR,
    Keyword::WHEN,
    Keyword::XOR,
];

/// Most columns of a SELECT, as in PostgreSQL: planning compares each with each.
const COLUMNS: usize = 1_664;

/// Most tables a statement may come to once its common tables are written out.
const TABLES: usize = 200;

/// Refuses a text whose mere reading would go too deep.
///
/// # Errors
/// [`Error::SqlSyntax`].
pub fn check_size(sql: &str) -> Result<()> {
    check_size_within(sql, OPERATORS, CALLS)
}

/// The same, with other numbers of operators and of calls inside each other.
///
/// # Errors
/// [`Error::SqlSyntax`].
pub fn check_size_within(sql: &str, most_operators: usize, most_calls: usize) -> Result<()> {
    // What cannot be cut into tokens is the parser's to complain about.
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize() else { return Ok(()) };
    let (mut operators, mut sets, mut windows) = (0, 0, 0);
    // Whether each open parenthesis follows a word, and how many of them do.
    let (mut open, mut calls, mut deepest) = (Vec::new(), 0_usize, 0);
    let mut after_word = false;
    for token in &tokens {
        match token {
            Token::LParen => {
                open.push(after_word);
                calls += usize::from(after_word);
                deepest = deepest.max(calls);
            }
            Token::RParen => calls -= usize::from(open.pop().unwrap_or_default()),
            _ => {}
        }
        if !matches!(token, Token::Whitespace(_)) {
            after_word = matches!(token, Token::Word(_));
        }
        match token {
            Token::Word(word) => match word.keyword {
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::MINUS => sets += 1,
                Keyword::OVER => windows += 1,
                keyword if NESTING.contains(&keyword) => operators += 1,
                _ => {}
            },
            Token::Comma | Token::Whitespace(_) | Token::Period | Token::RParen | Token::SemiColon | Token::EOF => {}
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) | Token::LParen => {}
            _ => operators += 1,
        }
    }
    if deepest > most_calls {
        return Err(Error::SqlSyntax(format!(
            "the statement has calls or subqueries inside each other more than {most_calls} deep; ask in steps, or \
             with WITH"
        )));
    }
    match operators > most_operators || sets > SET_OPERATIONS || windows > WINDOWS {
        true => Err(Error::SqlSyntax(format!(
            "the statement has more than {most_operators} operators, {SET_OPERATIONS} set operations or {WINDOWS} \
             windows; use IN, or ask in steps"
        ))),
        false => Ok(()),
    }
}

/// The statement, and whether EXPLAIN stood before it.
///
/// # Errors
/// [`Error::Refused`] for forms of EXPLAIN that run the query or tell of files and statistics.
pub fn explained(statement: Statement) -> Result<(Statement, bool)> {
    let Statement::Explain(explain) = statement else { return Ok((statement, false)) };
    match explain.options == ExplainStatementOptions::default() {
        true => Ok((*explain.statement, true)),
        false => Err(Error::refused(
            "explain-form",
            "EXPLAIN with options would tell of files, statistics or hidden rows",
            "write EXPLAIN SELECT … without options",
        )),
    }
}

/// Refuses everything but one plain query.
///
/// # Errors
/// [`Error::Refused`].
pub fn only_a_query(statement: &Statement) -> Result<()> {
    let Statement::Statement(statement) = statement else { return Err(no_query()) };
    let ast::Statement::Query(query) = statement.as_ref() else { return Err(no_query()) };
    let mut walk = Walk { weights: HashMap::new(), fault: None };
    let _ = query.visit(&mut walk);
    if let Some(fault) = walk.fault {
        return Err(fault);
    }
    match weight(query, &walk.weights) > TABLES {
        true => Err(too_many_tables()),
        false => Ok(()),
    }
}

fn no_query() -> Error {
    Error::refused("read-only", "only queries are taken here", "write a SELECT; POST /v1/explain says what it would do")
}

fn too_many_tables() -> Error {
    Error::refused(
        "too-many-tables",
        format!("with its common tables written out the query reads more than {TABLES} tables"),
        "mention each common table once or twice, or ask in steps",
    )
}

/// Looks at every query, SELECT and table of a statement.
struct Walk {
    /// How many tables each common table comes to.
    weights: HashMap<String, usize>,
    fault: Option<Error>,
}

impl Walk {
    fn refuse(&mut self, fault: Error) -> ControlFlow<()> {
        self.fault.get_or_insert(fault);
        ControlFlow::Break(())
    }
}

impl Visitor for Walk {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if !query.locks.is_empty() {
            return self.refuse(Error::refused(
                "read-only",
                "the hub is read only and takes no locks",
                "leave out FOR UPDATE or FOR SHARE",
            ));
        }
        for common in query.with.iter().flat_map(|with| &with.cte_tables) {
            let weight = weight(&common.query, &self.weights);
            if weight > TABLES {
                return self.refuse(too_many_tables());
            }
            self.weights.insert(common.alias.name.value.to_lowercase(), weight);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        match select.projection.len() > COLUMNS {
            true => self.refuse(Error::SqlSyntax(format!("a SELECT has more than {COLUMNS} columns; select fewer"))),
            false => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        // The engine leaves these out without a word, and the answer would be another one.
        if let TableFactor::Table { with_hints, version, with_ordinality, partitions, sample, index_hints, .. } = factor
            && (!with_hints.is_empty()
                || version.is_some()
                || *with_ordinality
                || !partitions.is_empty()
                || sample.is_some()
                || !index_hints.is_empty())
        {
            return self.refuse(Error::refused(
                "unsupported",
                "TABLESAMPLE, hints, versions or partitions of a table",
                "name the table alone",
            ));
        }
        ControlFlow::Continue(())
    }
}

/// How many tables a query comes to, common tables by what they come to themselves.
fn weight(query: &Query, weights: &HashMap<String, usize>) -> usize {
    let mut total = 1_usize;
    let _ = ast::visit_relations(query, |name| {
        let name = name.0.last().map(|part| part.to_string().to_lowercase()).unwrap_or_default();
        total = total.saturating_add(weights.get(&name).copied().unwrap_or(1));
        ControlFlow::<()>::Continue(())
    });
    total
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    #[test]
    fn a_select_has_as_many_columns_as_in_postgresql() {
        let with = |columns: usize| {
            let sql = format!("SELECT * FROM (SELECT {}) t", vec!["1"; columns].join(", "));
            let statement = Parser::parse_sql(&PostgreSqlDialect {}, &sql).unwrap().remove(0);
            only_a_query(&Statement::Statement(Box::new(statement)))
        };
        assert!(with(COLUMNS).is_ok());
        assert!(matches!(with(COLUMNS + 1), Err(Error::SqlSyntax(_))));
    }
}
