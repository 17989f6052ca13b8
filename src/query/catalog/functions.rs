//! The functions that statements about the catalogue use: those every caller has, a few more of the engine's for
//! arrays, and PostgreSQL's own that turn object ids into names and back.
//!
//! What answers the same whatever it is asked is no function here; `rewrite` puts its answer in its place.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, StringArray},
    compute::cast,
    datatypes::{DataType, Int64Type},
};
use datafusion::{
    catalog::{TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::{DataFusionError, Result, ScalarValue},
    execution::SessionStateDefaults,
    logical_expr::{
        AggregateUDF, ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
        Volatility, WindowUDF,
    },
};
use datafusion_pg_catalog::pg_catalog::{array_bounds_udf, quote_ident_udf};

use super::{
    ROWS,
    contents::{Contents, ROLE},
    system, text, types,
};
use crate::{error::Error, query::functions::Listed};

/// Functions over arrays that callers may not use on data, where what they make could grow.
const ARRAYS: [&str; 9] = [
    "array_element",
    "array_has",
    "array_has_any",
    "array_length",
    "array_position",
    "array_to_string",
    "cardinality",
    "make_array",
    "string_to_array",
];

/// What needs no caller's names.
static COMMON: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
    let mut functions = Listed::Allowed.scalar();
    let all = SessionStateDefaults::default_scalar_functions();
    functions.extend(all.into_iter().filter(|function| ARRAYS.contains(&function.name())));
    functions.push(Arc::new(array_bounds_udf::create_array_upper_udf()));
    functions.push(Arc::new(array_bounds_udf::create_array_lower_udf()));
    functions.push(Arc::new(quote_ident_udf::create_quote_ident_udf()));
    functions.push(Arc::new(quote_ident_udf::create_parse_ident_udf()));
    functions.extend(text::functions());
    functions
});

static AGGREGATE: LazyLock<Vec<Arc<AggregateUDF>>> = LazyLock::new(|| {
    let mut functions = Listed::Allowed.aggregate();
    let all = SessionStateDefaults::default_aggregate_functions();
    functions.extend(all.into_iter().filter(|function| function.name() == "array_agg"));
    functions
});

/// The scalar functions of a session about these contents.
pub(super) fn scalar(contents: &Arc<Contents>) -> Vec<Arc<ScalarUDF>> {
    let mut functions = COMMON.clone();
    for what in What::ALL {
        let function = Lookup { what, contents: Arc::clone(contents), signature: anything() };
        functions.push(Arc::new(ScalarUDF::new_from_impl(function)));
    }
    functions
}

/// The aggregate functions.
pub(super) fn aggregate() -> Vec<Arc<AggregateUDF>> {
    AGGREGATE.clone()
}

/// The window functions.
pub(super) fn window() -> Vec<Arc<WindowUDF>> {
    Listed::Allowed.window()
}

/// The table functions: none that reads anything, or makes more rows than the catalogue has uses for.
pub(super) fn table() -> Vec<Arc<TableFunction>> {
    let all = SessionStateDefaults::default_table_functions();
    let series = all.into_iter().filter(|function| function.name() == "generate_series");
    let short = |function: Arc<TableFunction>| {
        let short = ShortSeries(Arc::clone(function.function()));
        Arc::new(TableFunction::new(function.name().to_owned(), Arc::new(short)))
    };
    series.map(short).collect()
}

/// A series of whole numbers with no more of them than an answer has rows.
#[derive(Debug)]
struct ShortSeries(Arc<dyn TableFunctionImpl>);

impl TableFunctionImpl for ShortSeries {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let number = |expr: &Expr| match expr {
            Expr::Literal(ScalarValue::Null, _) => Ok(None),
            Expr::Literal(ScalarValue::Int64(number), _) => Ok(*number),
            _ => Err(DataFusionError::Plan("a series of anything but whole numbers".into())),
        };
        let numbers = args.exprs().iter().map(number).collect::<Result<Vec<_>>>()?;
        let (from, to, step) = match numbers.as_slice() {
            [Some(to)] => (0, *to, 1),
            [Some(from), Some(to)] => (*from, *to, 1),
            [Some(from), Some(to), Some(step)] => (*from, *to, *step),
            _ => (0, 0, 1),
        };
        let rows = from.abs_diff(to) / step.unsigned_abs().max(1);
        if usize::try_from(rows).is_ok_and(|rows| rows < ROWS) {
            return self.0.call_with_args(args);
        }
        let words = format!("generate_series has more than {ROWS} rows");
        Err(DataFusionError::External(Box::new(Error::ResourceLimit(words))))
    }
}

/// What a function looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    FormatType,
    TypeName,
    RelationName,
    SchemaName,
    Description,
    ColumnDescription,
    RelationId,
    SchemaId,
    TypeId,
    RoleId,
}

impl What {
    const ALL: [Self; 10] = [
        Self::FormatType,
        Self::TypeName,
        Self::RelationName,
        Self::SchemaName,
        Self::Description,
        Self::ColumnDescription,
        Self::RelationId,
        Self::SchemaId,
        Self::TypeId,
        Self::RoleId,
    ];

    /// Its name in SQL. The names of object ids have none there: they are casts, as in `16::regtype::text`.
    fn name(self) -> &'static str {
        match self {
            Self::FormatType => "format_type",
            Self::TypeName => super::rewrite::TYPE_NAME,
            Self::RelationName => super::rewrite::RELATION_NAME,
            Self::SchemaName => super::rewrite::SCHEMA_NAME,
            Self::Description => "obj_description",
            Self::ColumnDescription => "col_description",
            Self::RelationId => "to_regclass",
            Self::SchemaId => "to_regnamespace",
            Self::TypeId => "to_regtype",
            Self::RoleId => "to_regrole",
        }
    }

    fn gives(self) -> DataType {
        match self {
            Self::RelationId | Self::SchemaId | Self::TypeId | Self::RoleId => DataType::Int32,
            _ => DataType::Utf8,
        }
    }
}

/// One to three arguments of any type: clients send object ids as numbers of any width and as text.
fn anything() -> Signature {
    let of = TypeSignature::OneOf((1..=3).map(TypeSignature::Any).collect());
    Signature::new(of, Volatility::Stable)
}

/// A function over one caller's contents.
struct Lookup {
    what: What,
    contents: Arc<Contents>,
    signature: Signature,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what.name())
    }
}

impl PartialEq for Lookup {
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what && Arc::ptr_eq(&self.contents, &other.contents)
    }
}

impl Eq for Lookup {}

impl Hash for Lookup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.what.hash(state);
    }
}

impl ScalarUDFImpl for Lookup {
    fn name(&self) -> &str {
        self.what.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.what.gives())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let one = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let rows = columns.first().map_or(0, |column| column.len());
        let found: ArrayRef = match self.what.gives() {
            DataType::Int32 => {
                let written = cast(&columns[0], &DataType::Utf8)?;
                let written: &StringArray = written.as_string();
                Arc::new(written.iter().map(|written| self.id(written?)).collect::<Int32Array>())
            }
            _ => {
                // What is no number has no name.
                let numbers = columns.iter().map(|column| cast(column, &DataType::Int64));
                let numbers = numbers.collect::<std::result::Result<Vec<_>, _>>()?;
                let numbers: Vec<&Int64Array> =
                    numbers.iter().map(|column| column.as_primitive::<Int64Type>()).collect();
                let at = |column: usize, row: usize| {
                    numbers.get(column).filter(|column| column.is_valid(row)).map(|column| column.value(row))
                };
                Arc::new((0..rows).map(|row| self.text(at(0, row)?, at(1, row))).collect::<StringArray>())
            }
        };
        Ok(match one {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&found, 0)?),
            false => ColumnarValue::Array(found),
        })
    }
}

impl Lookup {
    fn text(&self, oid: i64, second: Option<i64>) -> Option<String> {
        let contents = &self.contents;
        match self.what {
            What::FormatType => Some(types::name(oid, second)),
            What::TypeName => Some(types::name(oid, None)),
            What::RelationName => match (contents.relation(oid), system::relation_name(oid)) {
                (Some((agency, relation)), _) => Some(format!("{}.{}", agency.name, relation.name)),
                (None, Some(("pg_catalog", table))) => Some(table.to_owned()),
                (None, Some((schema, table))) => Some(format!("{schema}.{table}")),
                (None, None) => Some(oid.to_string()),
            },
            What::SchemaName => Some(contents.schema_name(oid).map_or_else(|| oid.to_string(), str::to_owned)),
            What::Description => contents.relation(oid).map(|(_, relation)| relation.description.clone()),
            What::ColumnDescription => {
                let (_, relation) = contents.relation(oid)?;
                let column = usize::try_from(second?).ok()?.checked_sub(1)?;
                relation.columns.get(column).map(|column| column.description.clone())
            }
            What::RelationId | What::SchemaId | What::TypeId | What::RoleId => None,
        }
    }

    fn id(&self, written: &str) -> Option<i32> {
        if let Ok(oid) = written.trim().parse() {
            return Some(oid);
        }
        match self.what {
            What::RelationId => self.contents.relation_id(written).or_else(|| system::relation_id(written)),
            What::SchemaId => self.contents.schema_id(written),
            What::TypeId => i32::try_from(types::oid(written)?).ok(),
            What::RoleId => (written == self.contents.caller).then_some(ROLE),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_found_among_what_the_caller_sees() {
        let contents = Arc::new(super::super::contents::tests::invented());
        let visits = contents.relation_id("community.visits").expect("an id");
        let of = |what| Lookup { what, contents: Arc::clone(&contents), signature: anything() };
        assert_eq!(of(What::RelationId).id("community.visits"), Some(visits));
        assert_eq!(of(What::RelationId).id("hospital.tests"), None);
        assert_eq!(of(What::RelationName).text(visits.into(), None).as_deref(), Some("community.visits"));
        assert_eq!(of(What::RelationName).text(1259, None).as_deref(), Some("pg_class"));
        assert_eq!(of(What::ColumnDescription).text(visits.into(), Some(1)).as_deref(), Some("token: who was met"));
        assert_eq!(of(What::ColumnDescription).text(visits.into(), Some(9)), None);
        assert_eq!(of(What::FormatType).text(1700, Some(655_366)).as_deref(), Some("numeric(10,2)"));
    }
}
