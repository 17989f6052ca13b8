//! `division(code, level)`, the hub's one function of its own: the city, district, subdistrict, community or grid
//! in which a division lies, so that nobody has to count digits.
//!
//! Codes are unpadded, as the hub keeps them: a code that is shorter than the level names a division above it,
//! and lies in none of that level.

use std::sync::Arc;

use arrow::{
    array::{AsArray, StringArray},
    datatypes::DataType,
};
use datafusion::{
    common::{Result, internal_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

use crate::dataset::division;

/// Its name in SQL.
pub const NAME: &str = "division";

/// The function. Total: NULL for NULL, for a code that is too short, and for what is no level.
pub fn function() -> Arc<ScalarUDF> {
    let signature = Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Division { signature }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Division {
    signature: Signature,
}

impl ScalarUDFImpl for Division {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [codes, levels] = arguments.args.as_slice() else { return internal_err!("division has two arguments") };
        let codes = codes.to_array(arguments.number_rows)?;
        let codes = codes.as_string::<i32>();
        let divisions: StringArray = match levels {
            ColumnarValue::Scalar(level) => {
                let width = level.try_as_str().flatten().and_then(division::width);
                codes.iter().map(|code| code?.get(..width?)).collect()
            }
            ColumnarValue::Array(levels) => {
                let levels = levels.as_string::<i32>();
                codes.iter().zip(levels).map(|(code, level)| code?.get(..division::width(level?)?)).collect()
            }
        };
        Ok(ColumnarValue::Array(Arc::new(divisions)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, ArrayRef},
        datatypes::Field,
    };
    use datafusion::{common::ScalarValue, config::ConfigOptions};

    use super::*;

    fn of(codes: &[Option<&str>], levels: ColumnarValue) -> Vec<Option<String>> {
        let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
        let column: ArrayRef = Arc::new(StringArray::from(codes.to_vec()));
        let arguments = ScalarFunctionArgs {
            args: vec![ColumnarValue::Array(column), levels],
            arg_fields: vec![field("code"), field("level")],
            number_rows: codes.len(),
            return_field: field("division"),
            config_options: Arc::new(ConfigOptions::default()),
        };
        let divisions = function().invoke_with_args(arguments).unwrap().into_array(codes.len()).unwrap();
        assert_eq!(divisions.len(), codes.len());
        divisions.as_string::<i32>().iter().map(|code| code.map(str::to_owned)).collect()
    }

    #[test]
    fn a_code_is_cut_at_its_level() {
        let grid = Some("420191001002003");
        for (level, expected) in [
            ("city", "4201"),
            ("district", "420191"),
            ("subdistrict", "420191001"),
            ("community", "420191001002"),
            ("grid", "420191001002003"),
        ] {
            let found = of(&[grid, None, Some("42"), Some("")], ColumnarValue::Scalar(level.into()));
            assert_eq!(found, [Some(expected.to_owned()), None, None, None], "{level}");
        }
        // A character that would be cut through is none of a code's.
        assert_eq!(of(&[Some("420江")], ColumnarValue::Scalar("city".into())), [None]);
    }

    #[test]
    fn what_is_no_level_yields_nothing() {
        for level in [ScalarValue::from("street"), ScalarValue::from("City"), ScalarValue::Utf8(None)] {
            assert_eq!(of(&[Some("420191")], ColumnarValue::Scalar(level)), [None]);
        }
        let levels: ArrayRef = Arc::new(StringArray::from(vec![Some("district"), Some("street"), None]));
        let codes = [Some("420191001"); 3];
        assert_eq!(of(&codes, ColumnarValue::Array(levels)), [Some("420191".to_owned()), None, None]);
    }
}
