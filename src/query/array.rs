//! Arrays as clients know them: `x = ANY (…)` is `x IN (…)` and `x <> ALL (…)` is `x NOT IN (…)`, written out before
//! either gate looks, so that masks, tokens and the rules of disclosure know one form of it. Nothing else can be done
//! with an array: none is ever a value of its own.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::Arc,
};

use arrow::{
    array::{Array as _, ArrayRef},
    datatypes::DataType,
};
use datafusion::{
    common::{
        ScalarValue,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Cast, Expr, LogicalPlan, expr::InList, expr_rewriter::NamePreserver, lit},
    sql::sqlparser::ast::{self, ArrayElemTypeDef, BinaryOperator, CastKind, Statement, Value, VisitMut, VisitorMut},
};

use super::plan_errors;
use crate::error::{Error, Result};

/// What stands after the name of a parameter that is an array and is to be written out. No statement has such a name
/// of its own.
const EACH: &str = "[]";

/// Most casts of an array upon each other, and the longest type it is cast to, in bytes: each of them is written out
/// with every element, so that a short statement could become one of gigabytes.
const CASTS: usize = 2;
const LONGEST_TYPE: usize = 64;

/// The parameters of a statement that are arrays, and how often each of them is written out. Names are as in `$1`.
#[derive(Debug, Default)]
pub struct Arrays(BTreeMap<String, usize>);

/// Puts IN for every comparison with an array. What a parameter stands for is put in later, by
/// [`Arrays::written_out`].
///
/// # Errors
/// [`Error::Refused`] for other comparisons with arrays, and for arrays that are computed; [`Error::SqlSyntax`] for
/// texts that are no arrays.
pub fn as_lists(statement: &mut Statement) -> Result<Arrays> {
    let mut lists = Lists { arrays: Arrays::default(), fault: None };
    let _ = statement.visit(&mut lists);
    match lists.fault {
        Some(fault) => Err(fault),
        None => Ok(lists.arrays),
    }
}

/// The name of the parameter, as in `$1`, that stands for each element of itself under this one.
pub fn parameter_behind(id: &str) -> Option<&str> {
    id.strip_suffix(EACH)
}

/// The type of an array whose elements are compared with values of that type; of texts where nobody knows.
pub fn type_of(element: Option<DataType>) -> DataType {
    DataType::new_list(element.filter(|kind| *kind != DataType::Null).unwrap_or(DataType::Utf8), true)
}

/// The elements of an array of one dimension as PostgreSQL writes it, `{a,"b c",NULL}`; none for NULL. Nothing where
/// the text is no such array.
pub fn elements(written: &str) -> Option<Vec<Option<String>>> {
    let inner = written.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    if inner.trim().is_empty() {
        return Some(elements);
    }
    let mut letters = inner.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_ascii_whitespace()).is_some() {}
        let mut element = String::new();
        let quoted = letters.next_if_eq(&'"').is_some();
        loop {
            match letters.peek() {
                None if quoted => return None,
                None | Some(',') if !quoted => break,
                Some('"') if quoted => {
                    letters.next();
                    break;
                }
                Some('{' | '}' | '"') if !quoted => return None,
                Some('\\') => {
                    letters.next();
                    element.push(letters.next()?);
                }
                Some(_) => element.extend(letters.next()),
                None => return None,
            }
        }
        while letters.next_if(|letter| letter.is_ascii_whitespace()).is_some() {}
        elements.push(match quoted {
            true => Some(element),
            false => {
                let element = element.trim_end();
                if element.is_empty() {
                    return None;
                }
                (!element.eq_ignore_ascii_case("null")).then(|| element.to_owned())
            }
        });
        match letters.next() {
            Some(',') => {}
            None => return Some(elements),
            Some(_) => return None,
        }
    }
}

/// A value as text, an array as PostgreSQL writes it: two values that differ read differently. Nothing for an array
/// that a statement of `longest` bytes could not hold, nor for what hides digits from the eye that looks for
/// identifiers.
pub fn written(value: &ScalarValue, longest: usize) -> Option<String> {
    if count(value) > longest {
        return None;
    }
    let is_array = value.data_type().is_nested() && !value.is_null();
    let Some(members) = members(value).filter(|_| is_array) else { return legible(value) };
    let element = |member: &ScalarValue| match member.is_null() {
        true => Some("NULL".to_owned()),
        false => Some(format!("\"{}\"", legible(member)?.replace('\\', "\\\\").replace('"', "\\\""))),
    };
    Some(format!("{{{}}}", members.iter().map(element).collect::<Option<Vec<_>>>()?.join(",")))
}

/// A value as text. Nothing for bytes, of which the engine writes the first few only, and in hexadecimal, nor for
/// fractions so long that there may be the most of an identifier in them.
fn legible(value: &ScalarValue) -> Option<String> {
    use DataType as D;
    const SHORT: usize = 10;
    match value.data_type() {
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) if !value.is_null() => None,
        D::Float16 | D::Float32 | D::Float64 => Some(value.to_string()).filter(|text| text.len() <= SHORT),
        _ => Some(value.to_string()),
    }
}

/// Puts lists in the place of comparisons.
struct Lists {
    arrays: Arrays,
    fault: Option<Error>,
}

impl VisitorMut for Lists {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
        match self.instead(expr) {
            Ok(Some(instead)) => *expr = instead,
            Ok(None) => {}
            Err(fault) => {
                self.fault.get_or_insert(fault);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

impl Lists {
    fn instead(&mut self, expr: &ast::Expr) -> Result<Option<ast::Expr>> {
        let (left, right, negated) = match expr {
            ast::Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => (left, right, Some(false)),
            ast::Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => (left, right, Some(true)),
            ast::Expr::AnyOp { left, right, .. } | ast::Expr::AllOp { left, right, .. } => (left, right, None),
            _ => return Ok(None),
        };
        match (negated, right.as_ref()) {
            // The gate has its own words for comparisons with a subquery.
            (_, ast::Expr::Subquery(_)) => Ok(None),
            (Some(negated), array) => {
                let list = self.members(array, 0)?;
                Ok(Some(ast::Expr::InList { expr: left.clone(), list, negated }))
            }
            (None, _) => Err(other_comparison()),
        }
    }

    /// What is in an array that is written out, is a parameter, or is one of these under a cast. It stands under so
    /// many `casts` itself.
    fn members(&mut self, array: &ast::Expr, casts: usize) -> Result<Vec<ast::Expr>> {
        match array {
            ast::Expr::Nested(inner) => self.members(inner, casts),
            ast::Expr::Array(array) if !array.elem.iter().any(is_array) => Ok(array.elem.clone()),
            ast::Expr::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr,
                data_type: ast::DataType::Array(ArrayElemTypeDef::SquareBracket(kind, _)),
                array: false,
                format: None,
            } => {
                if casts == CASTS || kind.to_string().len() > LONGEST_TYPE {
                    return Err(cast_too_much());
                }
                Ok(self.members(expr, casts + 1)?.into_iter().map(|member| cast_to(member, kind)).collect())
            }
            ast::Expr::Value(value) => match &value.value {
                // With NULL for an array nothing can be said, as with an array of NULL.
                Value::Null => Ok(vec![null()]),
                Value::Placeholder(name) => {
                    *self.arrays.0.entry(name.clone()).or_default() += 1;
                    Ok(vec![value_of(Value::Placeholder(format!("{name}{EACH}")))])
                }
                Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => {
                    let elements = elements(text).ok_or_else(no_array)?;
                    let text = |element| value_of(Value::SingleQuotedString(element));
                    Ok(elements.into_iter().map(|element| element.map_or_else(null, text)).collect())
                }
                _ => Err(no_array()),
            },
            _ => Err(computed()),
        }
    }
}

fn is_array(expr: &ast::Expr) -> bool {
    matches!(expr, ast::Expr::Array(_))
}

fn value_of(value: Value) -> ast::Expr {
    ast::Expr::Value(value.with_empty_span())
}

fn null() -> ast::Expr {
    value_of(Value::Null)
}

fn cast_to(expr: ast::Expr, kind: &ast::DataType) -> ast::Expr {
    let data_type = kind.clone();
    ast::Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

impl Arrays {
    /// The plan with the elements of array parameters in the place of these. Written out they may take `longest`
    /// bytes, as the statement itself.
    ///
    /// # Errors
    /// [`Error::SqlSyntax`] where a value is no array, [`Error::TooLarge`] where there is too much in them, and
    /// [`Error::Refused`] where something else is done with an array.
    pub fn written_out(&self, plan: LogicalPlan, values: &[ScalarValue], longest: usize) -> Result<LogicalPlan> {
        let mut each = HashMap::new();
        let mut length = 0_usize;
        for (name, times) in &self.0 {
            let value = value_of_parameter(name, values).ok_or_else(too_few)?;
            if count(value) > longest {
                return Err(too_long(longest));
            }
            let members = members(value).ok_or_else(|| wants_an_array(name))?;
            length = length.saturating_add(members.iter().map(room).sum::<usize>().saturating_mul(*times));
            each.insert(format!("{name}{EACH}"), members);
        }
        if length > longest {
            return Err(too_long(longest));
        }
        let plan = match each.is_empty() {
            true => plan,
            false => put_in(plan, &each, values).map_err(|fault| plan_errors::planning(&fault))?,
        };
        let is_array =
            |name: &String| value_of_parameter(name, values).is_some_and(|value| value.data_type().is_nested());
        // Most statements have none.
        let given = values.iter().any(|value| value.data_type().is_nested());
        match given && plan.get_parameter_names().map_err(Error::internal)?.iter().any(is_array) {
            true => Err(other_use()),
            false => Ok(plan),
        }
    }
}

/// The value of `$1` and the like.
fn value_of_parameter<'a>(name: &str, values: &'a [ScalarValue]) -> Option<&'a ScalarValue> {
    let number = name.strip_prefix('$')?.parse::<usize>().ok()?;
    values.get(number.checked_sub(1)?)
}

/// How many elements an array has, before any of them is looked at.
fn count(value: &ScalarValue) -> usize {
    match value {
        ScalarValue::List(list) => list.values().len(),
        ScalarValue::LargeList(list) => list.values().len(),
        ScalarValue::FixedSizeList(list) => list.values().len(),
        _ => 0,
    }
}

/// What is in an array; nothing where the value is none, or holds other arrays.
fn members(array: &ScalarValue) -> Option<Vec<ScalarValue>> {
    let kind = match array.data_type() {
        DataType::List(element) | DataType::LargeList(element) | DataType::FixedSizeList(element, _) => {
            element.data_type().clone()
        }
        DataType::Null => DataType::Null,
        _ => {
            // What has no type of its own comes as text.
            let Some(text) = array.try_as_str()? else { return Some(vec![ScalarValue::Null]) };
            let text = elements(text)?;
            return Some(text.into_iter().map(ScalarValue::Utf8).collect());
        }
    };
    if kind.is_nested() {
        return None;
    }
    if array.is_null() {
        // With NULL for an array nothing can be said, as with an array of NULL.
        return ScalarValue::try_new_null(&kind).ok().map(|null| vec![null]);
    }
    let values: ArrayRef = match array {
        ScalarValue::List(list) => list.value(0),
        ScalarValue::LargeList(list) => list.value(0),
        ScalarValue::FixedSizeList(list) => list.value(0),
        _ => return None,
    };
    (0..values.len()).map(|at| ScalarValue::try_from_array(&values, at).ok()).collect()
}

/// How many bytes a value and the comma after it take in a statement.
fn room(value: &ScalarValue) -> usize {
    let quoted = "''".len();
    match (value.try_as_str(), value) {
        (Some(text), _) => text.map_or("NULL".len(), |text| text.len() + quoted) + 1,
        // The engine would write the first few of them.
        (
            None,
            ScalarValue::Binary(Some(bytes))
            | ScalarValue::LargeBinary(Some(bytes))
            | ScalarValue::BinaryView(Some(bytes))
            | ScalarValue::FixedSizeBinary(_, Some(bytes)),
        ) => 2 * bytes.len() + quoted + 1,
        _ => value.to_string().len() + 1,
    }
}

fn put_in(
    plan: LogicalPlan,
    each: &HashMap<String, Vec<ScalarValue>>,
    values: &[ScalarValue],
) -> datafusion::error::Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|node| {
        // Parents refer to these expressions by name.
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            let put = expr.transform_up(|part| Ok(replaced(part, each, values)))?;
            Ok(put.update_data(|expr| name.restore(expr)))
        })
    })?;
    Ok(rewritten.data)
}

fn replaced(expr: Expr, each: &HashMap<String, Vec<ScalarValue>>, values: &[ScalarValue]) -> Transformed<Expr> {
    match expr {
        Expr::InList(InList { expr, list, negated }) => {
            let members = match list.as_slice() {
                [only] => parameter(only).and_then(|name| each.get(name)).map(|members| (only, members)),
                _ => None,
            };
            let Some((only, members)) = members else {
                return Transformed::no(Expr::InList(InList { expr, list, negated }));
            };
            let list = members.iter().map(|member| with_value(only, member)).collect();
            Transformed::yes(Expr::InList(InList { expr, list, negated }))
        }
        // `$1 IS NULL OR x = ANY ($1)`: no filter where there is no array.
        Expr::IsNull(ref inner) | Expr::IsNotNull(ref inner) => {
            let array = parameter(inner).filter(|name| each.contains_key(&format!("{name}{EACH}")));
            match array.and_then(|name| value_of_parameter(name, values)) {
                Some(value) => Transformed::yes(lit(value.is_null() == matches!(expr, Expr::IsNull(_)))),
                None => Transformed::no(expr),
            }
        }
        other => Transformed::no(other),
    }
}

/// The name of the parameter that this is, also under casts.
fn parameter(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Placeholder(placeholder) => Some(&placeholder.id),
        Expr::Cast(cast) => parameter(&cast.expr),
        _ => None,
    }
}

/// The value under the casts of a parameter. A cast to the type it has would only hide it.
fn with_value(parameter: &Expr, value: &ScalarValue) -> Expr {
    let Expr::Cast(cast) = parameter else { return lit(value.clone()) };
    match with_value(&cast.expr, value) {
        Expr::Literal(value, metadata) if value.data_type() == *cast.field.data_type() => {
            Expr::Literal(value, metadata)
        }
        inner => Expr::Cast(Cast::new_from_field(Box::new(inner), Arc::clone(&cast.field))),
    }
}

/// The comparisons with arrays that pass.
const FORMS: &str = "write `x = ANY ($1)` or `x <> ALL ($1)` with an array for $1, `x IN (…)` or `x NOT IN (…)`";

fn other_comparison() -> Error {
    Error::refused("array", "arrays are compared by `= ANY` and `<> ALL` only", FORMS)
}

fn other_use() -> Error {
    Error::refused("array", "an array stands where one value belongs", FORMS)
}

fn computed() -> Error {
    let why =
        "ANY and ALL take an array of one dimension that is a parameter or written out, and none that is computed";
    Error::refused("array", why, FORMS)
}

fn cast_too_much() -> Error {
    Error::refused("array", "an array is cast again and again, or to a type of many words", FORMS)
}

fn no_array() -> Error {
    Error::SqlSyntax(
        "ANY and ALL take an array of one dimension; write `x = ANY ('{a,b}')` or `x IN ('a', 'b')`".into(),
    )
}

fn too_long(longest: usize) -> Error {
    let limit = format!("{} KiB, as long as a statement may be", longest >> 10);
    Error::TooLarge { what: "an array to compare with", limit }
}

fn too_few() -> Error {
    Error::SqlSyntax("the statement has more placeholders than `params` has values".into())
}

fn wants_an_array(name: &str) -> Error {
    let name: String = name.chars().take(16).collect();
    Error::SqlSyntax(format!("ANY and ALL take an array of one dimension for {name}; for one value write `x = {name}`"))
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "statements are planned over an invented table, behind no gate")]
mod tests {
    use datafusion::{
        prelude::{SessionConfig, SessionContext},
        sql::sqlparser::{dialect::PostgreSqlDialect, parser::Parser},
    };

    use super::*;

    fn parsed(sql: &str) -> Statement {
        Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0)
    }

    /// A statement with lists for its arrays, or the slug of what is wrong with it.
    fn listed(condition: &str) -> String {
        let mut statement = parsed(&format!("SELECT 1 FROM t WHERE {condition}"));
        match as_lists(&mut statement) {
            Ok(_) => statement.to_string().split_once(" WHERE ").unwrap().1.to_owned(),
            Err(fault) => fault.slug().to_owned(),
        }
    }

    fn texts(elements: &[Option<&str>]) -> ScalarValue {
        let elements: Vec<_> = elements.iter().map(|element| ScalarValue::from(*element)).collect();
        ScalarValue::List(ScalarValue::new_list_nullable(&elements, &DataType::Utf8))
    }

    fn numbers(elements: &[i32]) -> ScalarValue {
        let elements: Vec<_> = elements.iter().map(|element| ScalarValue::from(*element)).collect();
        ScalarValue::List(ScalarValue::new_list_nullable(&elements, &DataType::Int32))
    }

    #[test]
    fn arrays_that_are_written_out_are_lists() {
        for (array, list) in [
            ("x = ANY (ARRAY['a', 'b'])", "x IN ('a', 'b')"),
            ("x = SOME (ARRAY[1, y])", "x IN (1, y)"),
            ("x <> ALL (ARRAY['a'])", "x NOT IN ('a')"),
            ("x != ALL ((ARRAY['a']))", "x NOT IN ('a')"),
            ("NOT x = ANY ('{a,\"b,c\",NULL}')", "NOT x IN ('a', 'b,c', NULL)"),
            ("x = ANY ('{it''s}')", "x IN ('it''s')"),
            ("x = ANY ('{1,2}'::int[])", "x IN (CAST('1' AS INT), CAST('2' AS INT))"),
            ("x = ANY (CAST(ARRAY[1] AS bigint[]))", "x IN (CAST(1 AS BIGINT))"),
            ("x = ANY (NULL)", "x IN (NULL)"),
            ("x = ANY ($2)", "x IN ($2[])"),
            ("x = ANY ($1::text[])", "x IN (CAST($1[] AS TEXT))"),
            ("x IN (SELECT y FROM u WHERE z = ANY ('{a}'))", "x IN (SELECT y FROM u WHERE z IN ('a'))"),
        ] {
            assert_eq!(listed(array), list, "{array}");
        }
        for empty in ["'{}'", "ARRAY[]", "ARRAY[]::text[]", "'{}'::int[]"] {
            assert_eq!(listed(&format!("x = ANY ({empty})")), "x IN ()", "{empty}");
            assert_eq!(listed(&format!("x <> ALL ({empty})")), "x NOT IN ()", "{empty}");
        }
    }

    #[test]
    fn what_else_is_done_with_arrays_is_refused() {
        for (condition, slug) in [
            ("x > ANY (ARRAY[1, 2])", "refused"),
            ("x <> ANY (ARRAY[1, 2])", "refused"),
            ("x = ALL ($1)", "refused"),
            ("x = ANY (y)", "refused"),
            ("x = ANY (string_to_array('a,b', ','))", "refused"),
            ("x = ANY (ARRAY[ARRAY[1], ARRAY[2]])", "refused"),
            ("x = ANY (ARRAY['a'] || $1)", "refused"),
            ("x = ANY ($1::text)", "refused"),
            ("x = ANY ('a')", "sql-syntax"),
            ("x = ANY ('{{a},{b}}')", "sql-syntax"),
            ("x = ANY (1)", "sql-syntax"),
        ] {
            assert_eq!(listed(condition), slug, "{condition}");
        }
    }

    #[test]
    fn casts_make_no_long_list_of_a_short_statement() {
        for kind in ["timestamp(6) without time zone", "numeric(38, 10)", "character varying(255)"] {
            assert_ne!(listed(&format!("x = ANY ($1::text[]::{kind}[])")), "refused", "{kind}");
        }
        let parts = "1,".repeat(LONGEST_TYPE / 2);
        for kind in [format!("text[]{}", "::text[]".repeat(CASTS)), format!("made_up({parts}1)[]")] {
            for array in ["'{1,2}'", "ARRAY[1, 2]", "$1", "('{1,2}')"] {
                assert_eq!(listed(&format!("x = ANY ({array}::{kind})")), "refused", "{array}::{kind}");
            }
        }
    }

    #[test]
    fn arrays_as_text_are_read_as_postgresql_reads_them() {
        let some = |element: &str| Some(element.to_owned());
        assert_eq!(elements("{}"), Some(Vec::new()));
        assert_eq!(elements(" { } "), Some(Vec::new()));
        let read = elements("{a, \"b,\\\"c\\\\\",NULL,\"null\",\"\", d e }");
        let wanted = vec![some("a"), some("b,\"c\\"), None, some("null"), some(""), some("d e")];
        assert_eq!(read, Some(wanted));
        for broken in ["", "a", "{a", "{a,}", "{,a}", "{\"a}", "{{a},{b}}", "{a}x", "{\"a\"b}", "{a\\"] {
            assert_eq!(elements(broken), None, "{broken}");
        }
    }

    #[test]
    fn arrays_are_kept_as_they_are_written() {
        let written = |value: &ScalarValue| written(value, 3).unwrap_or_else(|| "too long".into());
        assert_eq!(written(&texts(&[Some("a,b"), None, Some("\"c\\")])), "{\"a,b\",NULL,\"\\\"c\\\\\"}");
        assert_eq!(written(&numbers(&[1, 2, 3, 4])), "too long");
        assert_eq!(written(&numbers(&[1, -2])), "{\"1\",\"-2\"}");
        assert_eq!(written(&texts(&[])), "{}");
        assert_eq!(written(&ScalarValue::from("{a}")), "{a}");
        assert_eq!(written(&ScalarValue::from(7_i64)), "7");
        assert_eq!(elements(&written(&texts(&[Some("x\\\""), None]))), Some(vec![Some("x\\\"".into()), None]));
    }

    #[test]
    fn what_hides_digits_is_not_kept() {
        let bytes = |text: &str| ScalarValue::Binary(Some(text.as_bytes().to_vec()));
        let list = |member: ScalarValue| {
            ScalarValue::List(ScalarValue::new_list_nullable(std::slice::from_ref(&member), &member.data_type()))
        };
        // The first digits of a person's number are half of it.
        for hidden in [bytes("11010519491231002X"), ScalarValue::from(110_105_194_912_310_016.0_f64)] {
            assert_eq!(written(&hidden, 1_000), None, "{hidden:?}");
            assert_eq!(written(&list(hidden), 1_000), None);
        }
        assert_eq!(written(&ScalarValue::from(37.25_f64), 1_000).as_deref(), Some("37.25"));
        assert_eq!(written(&ScalarValue::Binary(None), 1_000).as_deref(), Some("NULL"));
    }

    /// The plan of a statement over a table with a text `x` and a number `n`, with these values put in.
    async fn planned(sql: &str, values: &[ScalarValue], longest: usize) -> Result<LogicalPlan> {
        let mut config = SessionConfig::new();
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let context = SessionContext::new_with_config(config);
        context.sql("CREATE TABLE t (x TEXT, n INT)").await.unwrap().collect().await.unwrap();
        let mut statement = parsed(sql);
        let arrays = as_lists(&mut statement)?;
        let statement = datafusion::sql::parser::Statement::Statement(Box::new(statement));
        let plan = context.state().statement_to_plan(statement).await.unwrap();
        let plan = arrays.written_out(plan, values, longest)?;
        plan.with_param_values(values.to_vec()).map_err(|fault| plan_errors::planning(&fault))
    }

    async fn filter(condition: &str, values: &[ScalarValue]) -> String {
        let plan = planned(&format!("SELECT x FROM t WHERE {condition}"), values, 1_000).await;
        match plan {
            Ok(plan) => {
                let plan = plan.display_indent().to_string();
                let line = plan.lines().find_map(|line| line.trim().strip_prefix("Filter: ")).unwrap();
                line.to_owned()
            }
            Err(fault) => fault.slug().to_owned(),
        }
    }

    #[tokio::test]
    async fn parameters_are_written_out_as_lists() {
        let ab = [texts(&[Some("a"), Some("b")])];
        let list = "t.x IN ([Utf8(\"a\"), Utf8(\"b\")])";
        for condition in ["x = ANY ($1)", "x = ANY ($1::text[])", "x IN ('a', 'b')"] {
            assert_eq!(filter(condition, &ab).await, list, "{condition}");
        }
        assert_eq!(filter("x = ANY ($1)", &[ScalarValue::from("{a,b}")]).await, list);
        assert_eq!(filter("x <> ALL ($1)", &ab).await, list.replace("IN", "NOT IN"));
        assert_eq!(filter("n = ANY ($1)", &[numbers(&[1, 2])]).await, "t.n IN ([Int32(1), Int32(2)])");
        assert_eq!(filter("n = ANY ($1::bigint[])", &[numbers(&[1])]).await, "t.n IN ([CAST(Int32(1) AS Int64)])");
        let either = filter("$1 IS NULL OR x = ANY ($1)", &ab).await;
        assert_eq!(either, format!("Boolean(false) OR {list}"));
        let either = filter("$1::text[] IS NOT NULL AND x = ANY ($1::text[])", &ab).await;
        assert_eq!(either, format!("Boolean(true) AND {list}"));
    }

    #[tokio::test]
    async fn arrays_of_nothing_are_those_of_postgresql() {
        // IN of no element is false, whatever the value, and NOT IN is true.
        assert_eq!(filter("x = ANY ($1)", &[texts(&[])]).await, "t.x IN ([])");
        assert_eq!(filter("x <> ALL ($1)", &[texts(&[])]).await, "t.x NOT IN ([])");
        // Of NULL it is neither.
        let null = ScalarValue::new_null_list(DataType::Utf8, true, 1);
        for value in [null, texts(&[None]), ScalarValue::Utf8(None)] {
            let found = filter("x = ANY ($1)", std::slice::from_ref(&value)).await;
            assert!(["t.x IN ([Utf8(NULL)])", "t.x IN ([NULL])"].contains(&found.as_str()), "{value:?}: {found}");
        }
        assert_eq!(filter("x = ANY ($1)", &[ScalarValue::Null]).await, "t.x IN ([NULL])");
    }

    #[tokio::test]
    async fn what_is_no_array_or_too_long_is_refused() {
        let ab = [texts(&[Some("a"), Some("b")])];
        let bytes = |length| {
            let one = ScalarValue::Binary(Some(vec![0; length]));
            ScalarValue::List(ScalarValue::new_list_nullable(&[one], &DataType::Binary))
        };
        for (condition, values, slug) in [
            ("x = ANY ($1)", vec![ScalarValue::from("a")], "sql-syntax"),
            ("n = ANY ($1)", vec![ScalarValue::from(1_i64)], "sql-syntax"),
            ("x = ANY ($1)", vec![], "sql-syntax"),
            ("x = ANY ($2)", ab.to_vec(), "sql-syntax"),
            ("x IN ($1)", ab.to_vec(), "refused"),
            ("x = ANY ($1) AND x = $1", ab.to_vec(), "refused"),
            ("x = ANY ($1)", vec![texts(&[Some("a"); 251])], "too-large"),
            ("x = ANY ($1) OR x = ANY ($1)", vec![texts(&[Some("a"); 126])], "too-large"),
            ("x = ANY ($1)", vec![bytes(500)], "too-large"),
        ] {
            assert_eq!(filter(condition, &values).await, slug, "{condition}");
        }
        // Four bytes each.
        assert!(filter("x = ANY ($1)", &[texts(&[Some("a"); 250])]).await.starts_with("t.x IN"));
    }

    #[tokio::test]
    async fn columns_keep_their_names() {
        let sql = "SELECT x = ANY ($1), count(*) FROM t GROUP BY x = ANY ($1) ORDER BY 1";
        let plan = planned(sql, &[texts(&[Some("a"), Some("b")])], 1_000).await.unwrap();
        let name = plan.schema().field(0).name().clone();
        let other = planned(sql, &[texts(&[])], 1_000).await.unwrap();
        assert_eq!(other.schema().field(0).name(), &name);
    }
}
