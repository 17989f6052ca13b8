//! Statements about the catalogue in terms the engine knows: names of types, operators and casts of PostgreSQL,
//! functions whose answer is known before they are run, and parameters as the values they stand for.

use std::{collections::BTreeSet, iter, ops::ControlFlow};

use arrow::{
    array::Array as _,
    datatypes::{DataType, TimeUnit},
};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{
        self, ArrayElemTypeDef, BinaryOperator, CastKind, Expr, Function, FunctionArg, FunctionArgExpr,
        FunctionArgumentList, FunctionArguments, Ident, ObjectName, ObjectNamePart, OrderBy, OrderByExpr, OrderByKind,
        OrderByOptions, Query, Select, SelectItem, SetExpr, Statement, TableFactor, UnaryOperator, Value, VisitMut,
        VisitorMut,
    },
};

use super::{
    contents::{Contents, ROLE},
    system,
    text::PATTERN,
    types,
};
use crate::{
    error::{Error, Result},
    query::array,
};

/// What turns the object id of a type into its name.
pub(super) const TYPE_NAME: &str = "hub_type_name";

/// What turns the object id of a table into its name.
pub(super) const RELATION_NAME: &str = "hub_relation_name";

/// What turns the object id of a schema into its name.
pub(super) const SCHEMA_NAME: &str = "hub_schema_name";

/// What stands between the name of a column and its number, where the engine wants names to differ and PostgreSQL
/// does not.
const NUMBERED: char = '\u{1}';

/// What `version()` says. Clients read the number and believe it.
const VERSION: &str = concat!("PostgreSQL 16.4 (gridhub ", env!("CARGO_PKG_VERSION"), ")");

/// Functions that are true of everything a caller sees.
const TRUE: &[&str] = &["pg_has_role"];

/// Functions that are false here.
const FALSE: &[&str] = &[
    "pg_is_in_recovery",
    "pg_is_other_temp_schema",
    "pg_is_wal_replay_paused",
    "pg_relation_is_publishable",
    "row_security_active",
];

/// Functions that give nothing here, and text in PostgreSQL.
const NOTHING: &[&str] = &[
    "inet_client_addr",
    "inet_server_addr",
    "json_agg",
    "json_build_object",
    "jsonb_build_object",
    "pg_describe_object",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_function_arguments",
    "pg_get_function_identity_arguments",
    "pg_get_function_result",
    "pg_get_function_sqlbody",
    "pg_get_functiondef",
    "pg_get_indexdef",
    "pg_get_partkeydef",
    "pg_get_ruledef",
    "pg_get_serial_sequence",
    "pg_get_statisticsobjdef_columns",
    "pg_get_triggerdef",
    "pg_get_viewdef",
    "pg_relation_filepath",
    "pg_tablespace_location",
    "row_to_json",
    "shobj_description",
    "to_json",
    "to_regproc",
    "to_regprocedure",
];

/// Functions that are 0 here: sizes and times of work, which would tell of rows, and ids that nobody has.
const ZERO: &[&str] = &[
    "age",
    "inet_client_port",
    "inet_server_port",
    "pg_backend_pid",
    "pg_current_xact_id",
    "pg_database_size",
    "pg_indexes_size",
    "pg_my_temp_schema",
    "pg_relation_size",
    "pg_stat_get_numscans",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    "txid_current",
    "txid_current_if_assigned",
];

/// Aggregates by which a subquery has one row.
const AGGREGATES: &[&str] = &["array_agg", "avg", "bool_and", "bool_or", "count", "max", "min", "string_agg", "sum"];

/// What becomes of a subquery that stands for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subqueries {
    /// It is asked, as an aggregate: the engine takes no other where it looks at the row around it.
    Asked,
    /// It is NULL: the engine could not answer it. Descriptions and defaults are lost by that, no row is.
    Empty,
}

/// What stands for the parameters of a statement.
#[derive(Debug, Clone, Copy)]
pub(super) enum Parameters<'a> {
    /// Themselves, to find out their types.
    Kept,
    /// NULL, to find out the types of columns.
    Null,
    /// Their values.
    Values(&'a [ScalarValue]),
}

/// The statement as the engine can read it.
///
/// # Errors
/// [`Error::UnknownTable`] where a name is cast to an object id and names nothing; too few parameters.
pub(super) fn rewritten(
    mut statement: Statement,
    contents: &Contents,
    parameters: Parameters<'_>,
    subqueries: Subqueries,
) -> Result<Statement> {
    if let Statement::Query(query) = &mut statement {
        name_object_ids(&mut query.body);
        order_columns(query);
    }
    let mut rewrite = Rewrite { contents, parameters, subqueries, fault: None };
    let _ = statement.visit(&mut rewrite);
    match rewrite.fault {
        Some(fault) => Err(fault),
        None => Ok(statement),
    }
}

/// The name of a column as PostgreSQL has it.
pub(super) fn column_name(name: &str) -> &str {
    name.split(NUMBERED).next().unwrap_or_default()
}

/// Types that parameters have by being cast to them, by the number of the parameter from 1.
pub(super) fn hinted(statement: &Statement) -> Vec<(usize, DataType)> {
    struct Hints(Vec<(usize, DataType)>);
    impl ast::Visitor for Hints {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let hint = match expr {
                Expr::Cast { expr, data_type, .. } => {
                    placeholder(expr).and_then(|number| Some((number, hinted_type(&type_word(data_type))?)))
                }
                Expr::AnyOp { right, .. } | Expr::AllOp { right, .. } => {
                    placeholder(right).map(|number| (number, DataType::new_list(DataType::Utf8, true)))
                }
                _ => None,
            };
            self.0.extend(hint);
            ControlFlow::Continue(())
        }
    }
    let mut hints = Hints(Vec::new());
    let _ = ast::Visit::visit(statement, &mut hints);
    hints.0
}

fn hinted_type(word: &str) -> Option<DataType> {
    if let Some(item) = word.strip_suffix("[]") {
        return Some(DataType::new_list(hinted_type(item)?, true));
    }
    let (name, modifiers) = word.split_once('(').unwrap_or((word, ""));
    Some(match name.trim_end() {
        "oid" | "int" | "int4" | "integer" => DataType::Int32,
        "int2" | "smallint" => DataType::Int16,
        "int8" | "bigint" => DataType::Int64,
        "bool" | "boolean" => DataType::Boolean,
        "float4" | "real" => DataType::Float32,
        "float8" | "double precision" => DataType::Float64,
        "numeric" | "decimal" => decimal(modifiers),
        "date" => DataType::Date32,
        "timestamp" if !word.ends_with("with time zone") => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamp" | "timestamp with time zone" | "timestamptz" => {
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        }
        "timestamp without time zone" => DataType::Timestamp(TimeUnit::Microsecond, None),
        _ => DataType::Utf8,
    })
}

/// The decimal of a precision and a scale as they are written; the engine's own where there are none, or no such.
fn decimal(modifiers: &str) -> DataType {
    let mut numbers = modifiers.trim_end_matches(')').split(',').map(|number| number.trim().parse::<u8>());
    let (precision, scale) = match (numbers.next(), numbers.next()) {
        (Some(Ok(precision)), Some(Ok(scale))) => (precision, scale),
        (Some(Ok(precision)), None) => (precision, 0),
        _ => (38, 10),
    };
    match i8::try_from(scale) {
        Ok(places) if (1..=38).contains(&precision) && scale <= precision => DataType::Decimal128(precision, places),
        _ => DataType::Decimal128(38, 10),
    }
}

/// The number of a parameter, from 1.
fn placeholder(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => name.strip_prefix('$')?.parse().ok().filter(|number| *number > 0),
            _ => None,
        },
        Expr::Nested(inner) => placeholder(inner),
        _ => None,
    }
}

/// The right side of a comparison with many.
enum Members {
    /// These.
    Listed(Vec<Expr>),
    /// What a subquery finds.
    Rows(Box<Query>),
    /// Nothing that is known.
    Unknown,
    /// What the engine computes.
    Computed,
}

struct Rewrite<'a> {
    contents: &'a Contents,
    parameters: Parameters<'a>,
    subqueries: Subqueries,
    fault: Option<Error>,
}

impl VisitorMut for Rewrite<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        name_columns(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { name, args, .. } = factor else { return ControlFlow::Continue(()) };
        let parts = match name.0.as_slice() {
            [.., last] if args.is_some() => Some(vec![last.clone()]),
            // pg_catalog is looked at first, whatever the search path.
            [ObjectNamePart::Identifier(table)] if system::has("pg_catalog", &folded(table)) => {
                Some(vec![part("pg_catalog"), ObjectNamePart::Identifier(table.clone())])
            }
            _ => None,
        };
        if let Some(parts) = parts {
            name.0 = parts;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        // What is put in the place of something is looked at again, a few times.
        for _ in 0..8 {
            match self.replacement(expr) {
                Ok(Some(replacement)) => *expr = replacement,
                Ok(None) => break,
                Err(fault) => {
                    self.fault.get_or_insert(fault);
                    return ControlFlow::Break(());
                }
            }
        }
        if let Expr::Subquery(query) = expr {
            match self.subqueries {
                Subqueries::Asked => aggregated(query),
                Subqueries::Empty if has_source(query) => *expr = null(),
                Subqueries::Empty => {}
            }
        }
        ControlFlow::Continue(())
    }
}

impl Rewrite<'_> {
    fn replacement(&self, expr: &Expr) -> Result<Option<Expr>> {
        Ok(match expr {
            Expr::Collate { expr, .. } => Some((**expr).clone()),
            Expr::BinaryOp { left, op: BinaryOperator::PGCustomBinaryOperator(words), right } => {
                let op = match words.last().map(String::as_str) {
                    Some("~") => BinaryOperator::PGRegexMatch,
                    Some("~*") => BinaryOperator::PGRegexIMatch,
                    Some("!~") => BinaryOperator::PGRegexNotMatch,
                    Some("!~*") => BinaryOperator::PGRegexNotIMatch,
                    Some("=") => BinaryOperator::Eq,
                    Some("<>") => BinaryOperator::NotEq,
                    Some("||") => BinaryOperator::StringConcat,
                    _ => return Ok(None),
                };
                Some(Expr::BinaryOp { left: left.clone(), op, right: right.clone() })
            }
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => match self.members(right)? {
                Members::Listed(list) if list.is_empty() => Some(truth(false)),
                Members::Listed(list) => Some(Expr::InList { expr: left.clone(), list, negated: false }),
                Members::Rows(subquery) => Some(Expr::InSubquery { expr: left.clone(), subquery, negated: false }),
                Members::Unknown => Some(null_truth()),
                Members::Computed => None,
            },
            Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => match self.members(right)? {
                Members::Listed(list) if list.is_empty() => Some(truth(true)),
                Members::Listed(list) => Some(Expr::InList { expr: left.clone(), list, negated: true }),
                Members::Rows(subquery) => Some(Expr::InSubquery { expr: left.clone(), subquery, negated: true }),
                Members::Unknown => Some(null_truth()),
                Members::Computed => None,
            },
            Expr::Like { negated, any, expr, pattern, escape_char: Some(escape) } => Some(Expr::Like {
                negated: *negated,
                any: *any,
                expr: expr.clone(),
                pattern: Box::new(call(PATTERN, vec![(**pattern).clone(), Expr::Value(escape.clone())])),
                escape_char: None,
            }),
            Expr::ILike { negated, any, expr, pattern, escape_char: Some(escape) } => Some(Expr::ILike {
                negated: *negated,
                any: *any,
                expr: expr.clone(),
                pattern: Box::new(call(PATTERN, vec![(**pattern).clone(), Expr::Value(escape.clone())])),
                escape_char: None,
            }),
            Expr::Cast { expr, data_type, .. } => self.cast(expr, &type_word(data_type))?,
            Expr::Function(function) => self.function(function),
            Expr::Identifier(ident) if ident.quote_style.is_none() => match folded(ident).as_str() {
                "current_schema" => Some(text("public")),
                "current_role" => Some(text(&self.contents.caller)),
                _ => None,
            },
            Expr::Value(_) => match placeholder(expr) {
                Some(number) => self.parameter(number)?,
                None => None,
            },
            _ => None,
        })
    }

    /// What stands for a parameter.
    fn parameter(&self, number: usize) -> Result<Option<Expr>> {
        match self.parameters {
            Parameters::Kept => Ok(None),
            Parameters::Null => Ok(Some(null())),
            Parameters::Values(values) => match values.get(number - 1) {
                Some(value) => literal(value).map(Some),
                None => Err(Error::SqlSyntax("the statement has more placeholders than `params` has values".into())),
            },
        }
    }

    /// An expression, or the value that stands for it where it is a parameter that has one.
    fn valued(&self, expr: &Expr) -> Result<Expr> {
        Ok(match (placeholder(expr), self.parameters) {
            (Some(number), Parameters::Values(_)) => self.parameter(number)?.unwrap_or_else(null),
            _ => expr.clone(),
        })
    }

    /// What stands on the right side of `= ANY` and `<> ALL`.
    fn members(&self, right: &Expr) -> Result<Members> {
        // `'{a,b}'::text[]`, `$1::oid[]`
        let inner = match bare(right) {
            Expr::Cast { expr, .. } => bare(expr),
            expr => expr,
        };
        let inner = match (placeholder(inner), self.parameters) {
            (Some(number), Parameters::Values(_)) => self.parameter(number)?.unwrap_or_else(null),
            (Some(_), _) => return Ok(Members::Unknown),
            (None, _) => inner.clone(),
        };
        Ok(match inner {
            Expr::Subquery(subquery) => Members::Rows(subquery),
            Expr::Array(array) => Members::Listed(array.elem),
            Expr::Value(_) => match text_of(&inner).and_then(|text| elements(&text)) {
                Some(elements) => Members::Listed(elements),
                None => Members::Unknown,
            },
            _ => Members::Computed,
        })
    }

    /// Casts between names and object ids, and of arrays written as text.
    fn cast(&self, operand: &Expr, to: &str) -> Result<Option<Expr>> {
        let operand = &self.valued(operand)?;
        if let Some(list) = to.strip_suffix("[]") {
            let Some(elements) = text_of(operand).and_then(|text| elements(&text)) else { return Ok(None) };
            let elements = match hinted_type(list) {
                Some(DataType::Int16 | DataType::Int32 | DataType::Int64) => elements
                    .iter()
                    .map(|element| text_of(element).map_or_else(null, |digits| number(&digits)))
                    .collect(),
                _ => elements,
            };
            return Ok((!elements.is_empty()).then(|| array(elements)));
        }
        if let Expr::Cast { expr: id, data_type, .. } = bare(operand)
            && hinted_type(to) == Some(DataType::Utf8)
            && !to.starts_with("reg")
        {
            let kind = type_word(data_type);
            let function = match kind.as_str() {
                "regtype" => TYPE_NAME,
                "regclass" => RELATION_NAME,
                "regnamespace" => SCHEMA_NAME,
                "regrole" => {
                    // There is one.
                    self.identified(id, &kind)?;
                    return Ok(Some(text(&self.contents.caller)));
                }
                _ => return Ok(None),
            };
            return Ok(Some(call(function, vec![self.identified(id, &kind)?])));
        }
        match to.starts_with("reg") {
            true => self.identified(operand, to).map(Some),
            false => Ok(None),
        }
    }

    /// The object id of what is cast to a type of such ids.
    fn identified(&self, operand: &Expr, kind: &str) -> Result<Expr> {
        let operand = self.valued(operand)?;
        if let Some(name) = text_of(&operand) {
            return self.object_id(&name, kind);
        }
        let by_name = match kind {
            "regclass" => "to_regclass",
            "regtype" => "to_regtype",
            "regnamespace" => "to_regnamespace",
            "regrole" => "to_regrole",
            _ => return Ok(operand),
        };
        // What puts a name together; columns hold ids.
        let is_name = matches!(
            bare(&operand),
            Expr::BinaryOp { op: BinaryOperator::StringConcat, .. } | Expr::Function(_) | Expr::Value(_)
        );
        Ok(if is_name { call(by_name, vec![operand]) } else { operand })
    }

    /// The object id behind a name, as a number; the name of a function stays as it is, which is how the catalogue
    /// has them.
    fn object_id(&self, name: &str, kind: &str) -> Result<Expr> {
        if name.parse::<i32>().is_ok() {
            return Ok(number(name));
        }
        let found = match kind {
            "regclass" => self.contents.relation_id(name).or_else(|| system::relation_id(name)).map(i64::from),
            "regnamespace" => self.contents.schema_id(name).map(i64::from),
            "regtype" => types::oid(name),
            "regrole" => (name == self.contents.caller).then_some(i64::from(ROLE)),
            _ => return Ok(text(name.rsplit('.').next().unwrap_or(name))),
        };
        match (found, kind) {
            (Some(oid), _) => Ok(number(&oid.to_string())),
            (None, "regclass") => Err(Error::UnknownTable(name.to_owned())),
            (None, _) => Err(Error::SqlSyntax(format!("`{name}` is the name of no type, schema or role"))),
        }
    }

    /// What a function answers whatever it is asked, or the function under its bare name.
    fn function(&self, function: &Function) -> Option<Expr> {
        let (last, qualifier) = match function.name.0.as_slice() {
            [ObjectNamePart::Identifier(last)] => (last, None),
            [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(last)] => (last, Some(folded(schema))),
            _ => return None,
        };
        if qualifier.as_deref().is_some_and(|schema| schema != "pg_catalog" && schema != "information_schema") {
            return None;
        }
        let name = folded(last);
        let arguments = match &function.args {
            // `ARRAY(SELECT …)`
            FunctionArguments::Subquery(query) if name == "array" => {
                return Some(match self.subqueries {
                    Subqueries::Asked => gathered(query),
                    Subqueries::Empty => cast_to(null(), text_array()),
                });
            }
            FunctionArguments::List(list) => &list.args[..],
            _ => &[],
        };
        let argument = |index: usize| match arguments.get(index) {
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))) => Some(expr),
            _ => None,
        };
        Some(match name.as_str() {
            "version" => text(VERSION),
            "current_database" | "current_catalog" => text(system::DATABASE),
            "current_schema" => text("public"),
            "current_user" | "session_user" | "user" | "current_role" | "pg_get_userbyid" => {
                text(&self.contents.caller)
            }
            "current_schemas" => match argument(0) {
                Some(Expr::Value(value)) if value.value == Value::Boolean(true) => {
                    array(vec![text("pg_catalog"), text("public")])
                }
                _ => array(vec![text("public")]),
            },
            "current_setting" => {
                let name = argument(0).and_then(text_of).unwrap_or_default();
                let known = system::SETTINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
                known.map_or_else(|| cast_to(null(), ast::DataType::Text), |(_, value)| text(value))
            }
            "set_config" => argument(1)?.clone(),
            "pg_client_encoding" | "getdatabaseencoding" | "pg_encoding_to_char" => text("UTF8"),
            "pg_char_to_encoding" => number("6"),
            "pg_size_pretty" => text("0 bytes"),
            name if name.starts_with("pg_") && name.ends_with("_is_visible") => truth(true),
            name if name.starts_with("has_") && name.ends_with("_privilege") => {
                let asked = argument(arguments.len().checked_sub(1)?).and_then(text_of).unwrap_or_default();
                let had = |asked: &str| matches!(asked.trim(), "select" | "usage" | "connect" | "execute");
                truth(asked.to_lowercase().split(',').any(had))
            }
            name if TRUE.contains(&name) => truth(true),
            name if FALSE.contains(&name) => truth(false),
            name if NOTHING.contains(&name) => cast_to(null(), ast::DataType::Text),
            name if ZERO.contains(&name) => number("0"),
            _ if qualifier.is_some() => {
                let name = ObjectName(vec![ObjectNamePart::Identifier(last.clone())]);
                Expr::Function(Function { name, ..function.clone() })
            }
            _ => return None,
        })
    }
}

/// Object ids that are shown as names: those that the outermost columns are cast to.
fn name_object_ids(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            for item in &mut select.projection {
                let (alias, expr) = match &*item {
                    SelectItem::UnnamedExpr(expr) => (Ident::with_quote('"', figured(expr)), expr),
                    SelectItem::ExprWithAlias { expr, alias } => (alias.clone(), expr),
                    _ => continue,
                };
                let Expr::Cast { data_type, .. } = expr else { continue };
                if matches!(type_word(data_type).as_str(), "regclass" | "regtype" | "regnamespace" | "regrole") {
                    let expr = cast_to(expr.clone(), ast::DataType::Text);
                    *item = SelectItem::ExprWithAlias { expr, alias };
                }
            }
        }
        SetExpr::SetOperation { left, right, .. } => {
            name_object_ids(left);
            name_object_ids(right);
        }
        SetExpr::Query(query) => name_object_ids(&mut query.body),
        _ => {}
    }
}

/// Puts the columns of tables into their order where no other is asked for: some drivers number them as they come,
/// since PostgreSQL reads them in that order.
fn order_columns(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_ref() else { return };
    if query.order_by.is_some() || select.distinct.is_some() || select.having.is_some() || has_aggregate(select) {
        return;
    }
    let joined = |from: &ast::TableWithJoins| -> Vec<Ident> {
        let others = from.joins.iter().map(|join| &join.relation);
        iter::once(&from.relation).chain(others).filter_map(table_of_columns).collect()
    };
    let tables: Vec<Ident> = select.from.iter().flat_map(joined).collect();
    let [table] = tables.as_slice() else { return };
    let by = |column: &str| OrderByExpr {
        expr: Expr::CompoundIdentifier(vec![table.clone(), Ident::new(column)]),
        options: OrderByOptions { asc: None, nulls_first: None },
        with_fill: None,
    };
    let kind = OrderByKind::Expressions(vec![by("attrelid"), by("attnum")]);
    query.order_by = Some(OrderBy { kind, interpolate: None });
}

/// What `pg_attribute` is called, where it is this table.
fn table_of_columns(factor: &TableFactor) -> Option<Ident> {
    let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
    let Some(ObjectNamePart::Identifier(table)) = name.0.last() else { return None };
    match alias {
        _ if folded(table) != "pg_attribute" => None,
        Some(alias) if alias.columns.is_empty() => Some(alias.name.clone()),
        Some(_) => None,
        None => Some(table.clone()),
    }
}

/// Gives every computed column the name that PostgreSQL gives it, and tells equal names apart.
fn name_columns(select: &mut Select) {
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    let beside_all = select.projection.iter().any(is_wildcard);
    let mut seen = BTreeSet::new();
    for (place, item) in select.projection.iter_mut().enumerate() {
        let (name, expr) = match &*item {
            SelectItem::UnnamedExpr(expr) => (figured(expr), expr),
            SelectItem::ExprWithAlias { expr, alias } => (folded(alias), expr),
            _ => continue,
        };
        let new = seen.insert(name.clone());
        let stays = match &*item {
            // Its name may come again with the columns of `*`.
            SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => !beside_all,
            SelectItem::UnnamedExpr(_) => false,
            _ => true,
        };
        if new && stays {
            continue;
        }
        let plain = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
        let name = match new && !plain {
            true => name,
            false => format!("{name}{NUMBERED}{place}"),
        };
        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', name) };
    }
}

/// The name PostgreSQL gives to a column without one.
fn figured(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(ident) => folded(ident),
        Expr::CompoundIdentifier(idents) => idents.last().map(folded).unwrap_or_default(),
        Expr::Function(function) => match function.name.0.last() {
            Some(ObjectNamePart::Identifier(ident)) => folded(ident),
            _ => "?column?".into(),
        },
        Expr::Cast { expr, data_type, .. } => named(expr).unwrap_or_else(|| type_word(data_type)),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => figured(inner),
        Expr::CompoundFieldAccess { root, .. } => figured(root),
        Expr::Case { .. } => "case".into(),
        Expr::Array(_) => "array".into(),
        Expr::Exists { .. } => "exists".into(),
        Expr::Extract { .. } => "extract".into(),
        Expr::Substring { .. } => "substring".into(),
        Expr::Trim { .. } => "btrim".into(),
        Expr::Value(value) if matches!(value.value, Value::Boolean(_)) => "bool".into(),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first() {
                Some(SelectItem::UnnamedExpr(expr)) => figured(expr),
                Some(SelectItem::ExprWithAlias { alias, .. }) => folded(alias),
                _ => "?column?".into(),
            },
            _ => "?column?".into(),
        },
        _ => "?column?".into(),
    }
}

/// The name of what is cast, where it is a column or a function; a cast of anything else is named for its type.
fn named(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Cast { expr, .. } | Expr::Nested(expr) | Expr::Collate { expr, .. } => named(expr),
        Expr::Value(_) | Expr::Case { .. } => None,
        expr => Some(figured(expr)).filter(|name| name != "?column?"),
    }
}

/// Makes a subquery that stands for one value an aggregate. It has one row anyway; where it has none, an aggregate
/// is NULL as well.
fn aggregated(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    if select.from.is_empty() || has_aggregate(select) {
        return;
    }
    let [item] = select.projection.as_mut_slice() else { return };
    let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { return };
    *expr = call("min", vec![expr.clone()]);
    query.order_by = None;
    query.limit_clause = None;
    query.fetch = None;
}

/// `ARRAY(SELECT x …)` as an aggregate.
fn gathered(query: &Query) -> Expr {
    let mut query = query.clone();
    if let SetExpr::Select(select) = query.body.as_mut()
        && let [item] = select.projection.as_mut_slice()
        && let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item
    {
        *expr = call("array_agg", vec![expr.clone()]);
        // The engine takes no order here; the arrays of the catalogue are small or empty.
        query.order_by = None;
    }
    Expr::Subquery(Box::new(query))
}

fn has_aggregate(select: &Select) -> bool {
    let grouped = match &select.group_by {
        ast::GroupByExpr::Expressions(by, _) => !by.is_empty(),
        ast::GroupByExpr::All(_) => true,
    };
    let is_aggregate = |expr: &Expr| match expr {
        Expr::Function(function) => match function.name.0.last() {
            Some(ObjectNamePart::Identifier(name)) => AGGREGATES.contains(&folded(name).as_str()),
            _ => false,
        },
        _ => false,
    };
    let found = ast::visit_expressions(&select.projection, |expr| match is_aggregate(expr) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    grouped || found.is_break()
}

fn has_source(query: &Query) -> bool {
    match query.body.as_ref() {
        SetExpr::Select(select) => !select.from.is_empty(),
        _ => true,
    }
}

/// An expression without the parentheses around it.
fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => bare(inner),
        expr => expr,
    }
}

/// The name of a type in lower case, without its schema.
fn type_word(kind: &ast::DataType) -> String {
    let word = kind.to_string().to_lowercase().replace('"', "");
    word.strip_prefix("pg_catalog.").map(str::to_owned).unwrap_or(word)
}

/// A name as it is stored.
fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The text of a literal.
fn text_of(expr: &Expr) -> Option<String> {
    match bare(expr) {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text.clone()),
            _ => None,
        },
        Expr::Cast { expr, data_type, .. } if type_word(data_type) == "text" => text_of(expr),
        _ => None,
    }
}

/// The elements of an array written as `{a,"b"}`.
fn elements(written: &str) -> Option<Vec<Expr>> {
    let element = |element: Option<String>| element.map_or_else(null, |element| text(&element));
    Some(array::elements(written)?.into_iter().map(element).collect())
}

/// A value as it would be written in a statement.
fn literal(value: &ScalarValue) -> Result<Expr> {
    if value.is_null() {
        return Ok(null());
    }
    Ok(match value {
        ScalarValue::Boolean(Some(value)) => truth(*value),
        ScalarValue::Int8(_)
        | ScalarValue::Int16(_)
        | ScalarValue::Int32(_)
        | ScalarValue::Int64(_)
        | ScalarValue::UInt8(_)
        | ScalarValue::UInt16(_)
        | ScalarValue::UInt32(_)
        | ScalarValue::UInt64(_) => number(&value.to_string()),
        ScalarValue::List(list) => {
            let items = list.value(0);
            let items = (0..items.len()).map(|row| ScalarValue::try_from_array(&items, row).map_err(Error::internal));
            array(items.map(|item| literal(&item?)).collect::<Result<_>>()?)
        }
        value => match value.cast_to(&DataType::Utf8).map_err(Error::internal)? {
            ScalarValue::Utf8(Some(value)) => text(&value),
            _ => null(),
        },
    })
}

fn part(name: &str) -> ObjectNamePart {
    ObjectNamePart::Identifier(Ident::new(name))
}

fn value(value: Value) -> Expr {
    Expr::Value(value.with_empty_span())
}

fn text(text: &str) -> Expr {
    value(Value::SingleQuotedString(text.to_owned()))
}

/// A whole number. One below 0 is written as PostgreSQL reads it.
fn number(digits: &str) -> Expr {
    match digits.strip_prefix('-') {
        Some(digits) => {
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: Box::new(value(Value::Number(digits.to_owned(), false))) }
        }
        None => value(Value::Number(digits.to_owned(), false)),
    }
}

fn truth(of: bool) -> Expr {
    value(Value::Boolean(of))
}

fn null() -> Expr {
    value(Value::Null)
}

/// Neither true nor false.
fn null_truth() -> Expr {
    cast_to(null(), ast::DataType::Boolean)
}

fn array(elem: Vec<Expr>) -> Expr {
    Expr::Array(ast::Array { elem, named: true })
}

fn text_array() -> ast::DataType {
    ast::DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(ast::DataType::Text), None))
}

fn cast_to(expr: Expr, data_type: ast::DataType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    Expr::Function(Function {
        name: ObjectName(vec![part(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::PostgreSqlDialect, parser::Parser};

    use super::*;

    fn parsed(sql: &str) -> Statement {
        Parser::parse_sql(&PostgreSqlDialect {}, sql).expect("SQL").remove(0)
    }

    fn seen(sql: &str, values: &[ScalarValue]) -> Result<String> {
        let contents = super::super::contents::tests::invented();
        let parameters = Parameters::Values(values);
        Ok(rewritten(parsed(sql), &contents, parameters, Subqueries::Asked)?.to_string().replace(NUMBERED, "#"))
    }

    #[test]
    fn what_is_known_beforehand_is_put_in() {
        let cases = [
            ("SELECT current_user", "SELECT 'analyst' AS \"current_user\""),
            (
                "SELECT pg_catalog.pg_table_is_visible(c.oid) FROM pg_class c",
                "SELECT true AS \"pg_table_is_visible\" FROM pg_catalog.pg_class c",
            ),
            ("SELECT has_table_privilege('x', 'INSERT')", "SELECT false AS \"has_table_privilege\""),
            (
                "SELECT 1 WHERE 'a' OPERATOR(pg_catalog.~) 'b' COLLATE pg_catalog.default",
                "SELECT 1 AS \"?column?\" WHERE 'a' ~ 'b'",
            ),
            ("SELECT x::regtype::text FROM t", "SELECT hub_type_name(x) AS \"x\" FROM t"),
            ("SELECT 'pg_class'::regclass::oid", "SELECT 1259::oid AS \"oid\""),
            ("SELECT 'pg_catalog.array_in'::regproc = x FROM t", "SELECT 'array_in' = x AS \"?column?\" FROM t"),
            ("SELECT a = ANY('{r,\"v,w\"}') FROM t", "SELECT a IN ('r', 'v,w') AS \"?column?\" FROM t"),
            ("SELECT 'pg_class'::regclass", "SELECT hub_relation_name(1259) AS \"regclass\""),
            (
                "SELECT format('%I', a)::regclass::text FROM t",
                "SELECT hub_relation_name(to_regclass(format('%I', a))) AS \"format\" FROM t",
            ),
            (
                "SELECT 1 FROM t WHERE a NOT LIKE b || '%' ESCAPE '/'",
                "SELECT 1 AS \"?column?\" FROM t WHERE a NOT LIKE hub_like_pattern(b || '%', '/')",
            ),
        ];
        for (from, to) in cases {
            assert_eq!(seen(from, &[]).expect(from).to_lowercase(), to.to_lowercase());
        }
    }

    #[test]
    fn equal_names_are_told_apart_and_come_back_equal() {
        let sql = seen("SELECT NULL, NULL, n.oid, n.* FROM n", &[]).expect("SQL");
        let names: BTreeSet<&str> = sql.split('"').skip(1).step_by(2).collect();
        assert_eq!(names.len(), 3, "{sql}");
        assert_eq!(column_name("oid\u{1}4"), "oid");
    }

    #[test]
    fn parameters_are_values() {
        let values = [ScalarValue::Utf8(Some("it's".into())), ScalarValue::Int32(Some(-7))];
        assert_eq!(
            seen("SELECT a FROM t WHERE b = $1 AND c = $2", &values).expect("SQL"),
            "SELECT a FROM t WHERE b = 'it''s' AND c = -7"
        );
        assert!(matches!(seen("SELECT $3", &values), Err(Error::SqlSyntax(_))));
        let hints = hinted(&parsed("SELECT $1::oid, a = ANY($2), $3::oid[]"));
        let list = |kind| DataType::new_list(kind, true);
        assert_eq!(hints, [(1, DataType::Int32), (2, list(DataType::Utf8)), (3, list(DataType::Int32))]);
        let hints = hinted(&parsed(
            "SELECT $1::numeric(10, 2), $2::numeric, $3::numeric(5), $4::numeric(99), $5::date, $6::varchar(3), \
             $7::timestamp, $8::timestamptz, $9::timestamp with time zone",
        ));
        let instant = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let kinds: Vec<DataType> = hints.into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(
            kinds,
            [
                DataType::Decimal128(10, 2),
                DataType::Decimal128(38, 10),
                DataType::Decimal128(5, 0),
                DataType::Decimal128(38, 10),
                DataType::Date32,
                DataType::Utf8,
                instant(None),
                instant(Some("UTC")),
                instant(Some("UTC"))
            ]
        );
    }

    #[test]
    fn subqueries_become_aggregates() {
        let sql = seen(
            "SELECT (SELECT d.x FROM d WHERE d.y = c.z LIMIT 1) AS a, ARRAY(SELECT b FROM e ORDER BY 1) FROM c",
            &[],
        );
        assert_eq!(
            sql.expect("SQL"),
            "SELECT (SELECT min(d.x) AS \"min\" FROM d WHERE d.y = c.z) AS a, \
             (SELECT array_agg(b) AS \"array_agg\" FROM e) AS \"array\" FROM c"
        );
    }

    #[test]
    fn names_that_are_not_there_are_unknown_tables() {
        let value = [ScalarValue::Utf8(Some("a.b".into()))];
        for sql in ["SELECT 'a.b'::regclass", "SELECT 'a.b'::regclass::text", "SELECT 'a.b'::regclass::oid"] {
            assert!(matches!(seen(sql, &[]), Err(Error::UnknownTable(name)) if name == "a.b"), "{sql}");
            let sql = sql.replace("'a.b'", "$1");
            assert!(matches!(seen(&sql, &value), Err(Error::UnknownTable(name)) if name == "a.b"), "{sql}");
        }
        assert!(seen("SELECT 'community.visits'::regclass", &[]).is_ok());
        assert!(seen("SELECT 'analyst'::regrole", &[]).is_ok());
        assert!(matches!(seen("SELECT 'somebody'::regrole", &[]), Err(Error::SqlSyntax(_))));
    }

    #[test]
    fn columns_of_tables_come_in_their_order() {
        let ordered = |sql: &str| seen(sql, &[]).expect(sql).contains("ORDER BY");
        assert!(ordered("SELECT attname FROM pg_attribute"));
        assert!(ordered("SELECT a.attname FROM pg_class c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid"));
        let sql = seen("SELECT x.attname FROM pg_class c, \"pg_catalog\".\"pg_attribute\" x", &[]).expect("SQL");
        assert!(sql.ends_with("ORDER BY x.attrelid, x.attnum"), "{sql}");
        for sql in [
            "SELECT relname FROM pg_class",
            "SELECT count(*) FROM pg_attribute",
            "SELECT DISTINCT attname FROM pg_attribute",
            "SELECT attname, count(*) FROM pg_attribute GROUP BY attname",
            "SELECT a.attname FROM pg_attribute a JOIN pg_attribute b ON a.attname = b.attname",
        ] {
            assert!(!ordered(sql), "{sql}");
        }
    }
}
