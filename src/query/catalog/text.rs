//! Functions over text that statements about the catalogue put names together with: PostgreSQL's `format`, and
//! patterns of LIKE whose escape is not the engine's.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    compute::cast,
    datatypes::DataType,
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

/// What writes a pattern of LIKE with the backslash as its escape: the pattern, and the escape it was written with.
pub(super) const PATTERN: &str = "hub_like_pattern";

/// The longest text that is made, in bytes. Names and patterns are short, and the engine does not count what a function
/// makes.
const LONGEST: usize = 4 << 10;

/// The functions of this module.
pub(super) fn functions() -> [Arc<ScalarUDF>; 2] {
    [Made::Format, Made::Pattern].map(|made| Arc::new(ScalarUDF::new_from_impl(OfText { made, signature: anything() })))
}

fn anything() -> Signature {
    Signature::variadic_any(Volatility::Immutable)
}

/// What a function makes of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Made {
    Format,
    Pattern,
}

/// A function from texts to a text.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OfText {
    made: Made,
    signature: Signature,
}

impl ScalarUDFImpl for OfText {
    fn name(&self) -> &str {
        match self.made {
            Made::Format => "format",
            Made::Pattern => PATTERN,
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let one = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if one { 1 } else { args.number_rows };
        let text =
            |argument: &ColumnarValue| -> Result<ArrayRef> { Ok(cast(&argument.to_array(rows)?, &DataType::Utf8)?) };
        let columns = args.args.iter().map(text).collect::<Result<Vec<_>>>()?;
        let columns: Vec<&StringArray> = columns.iter().map(|column| column.as_string::<i32>()).collect();
        let row = |row: usize| {
            let texts = columns.iter().map(|column| if column.is_valid(row) { Some(column.value(row)) } else { None });
            match (texts.collect::<Vec<_>>().as_slice(), self.made) {
                ([Some(written), values @ ..], Made::Format) => formatted(written, values).map(Some),
                ([Some(written), Some(escape)], Made::Pattern) => escaped(written, escape.chars().next()).map(Some),
                _ => Ok(None),
            }
        };
        let made: StringArray = (0..rows).map(row).collect::<Result<_>>()?;
        Ok(match one {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&made, 0)?),
            false => ColumnarValue::Array(Arc::new(made)),
        })
    }
}

/// A text with values in the places of `%s`, `%I` (a name) and `%L` (a literal), which may be numbered as in `%2$I`.
/// Widths are not read.
fn formatted(written: &str, values: &[Option<&str>]) -> Result<String> {
    let unreadable = || DataFusionError::Execution("a format that cannot be read".into());
    let mut text = String::new();
    let mut next = 0;
    let mut rest = written;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let digits = after.len() - after.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        let (place, after) = match (&after[..digits], after[digits..].strip_prefix('$')) {
            ("", _) => (next, after),
            (number, Some(after)) => {
                let number: usize = number.parse().map_err(|_| unreadable())?;
                (number.checked_sub(1).ok_or_else(unreadable)?, after)
            }
            (_, None) => return Err(unreadable()),
        };
        let mut letters = after.chars();
        let letter = letters.next().ok_or_else(unreadable)?;
        rest = letters.as_str();
        if letter == '%' {
            text.push('%');
            continue;
        }
        let value = *values.get(place).ok_or_else(unreadable)?;
        next = place + 1;
        match (letter, value) {
            ('s', value) => text.push_str(value.unwrap_or_default()),
            ('I', Some(name)) => text.push_str(&as_name(name)),
            ('L', Some(value)) => text.push_str(&format!("'{}'", value.replace('\'', "''"))),
            ('L', None) => text.push_str("NULL"),
            _ => return Err(unreadable()),
        }
        if text.len() > LONGEST {
            break;
        }
    }
    text.push_str(rest);
    short(text)
}

fn short(text: String) -> Result<String> {
    match text.len() > LONGEST {
        true => Err(DataFusionError::Execution("a text that is too long".into())),
        false => Ok(text),
    }
}

/// A name as statements write it: in quotes where it would be read as another without them.
fn as_name(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    match plain && !name.starts_with(|first: char| first.is_ascii_digit()) && !name.is_empty() {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// A pattern of LIKE with the backslash as its escape in place of another, or of none.
fn escaped(written: &str, escape: Option<char>) -> Result<String> {
    let mut pattern = String::with_capacity(written.len());
    let mut letters = written.chars();
    while let Some(letter) = letters.next() {
        let (letter, literally) = match Some(letter) == escape {
            // At the end it stands for itself.
            true => (letters.next().unwrap_or(letter), true),
            false => (letter, letter == '\\'),
        };
        if literally && matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    short(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_those_of_postgresql() {
        let values = [Some("a b"), Some("it's"), None];
        for (written, text) in [
            ("%s", "a b"),
            ("%s%%, %s", "a b%, it's"),
            ("%I.%2$L|%L", "\"a b\".'it''s'|NULL"),
            ("%2$s %1$s", "it's a b"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(formatted(written, &values).expect(written), text, "{written}");
        }
        assert_eq!(formatted("%I", &[Some("visits")]).expect("a name"), "visits");
        for written in ["%", "%d", "%3$I", "%0$s", "%9$s", "%1s", "%s %s %s %s"] {
            assert!(formatted(written, &values).is_err(), "{written}");
        }
        let long = "x".repeat(LONGEST);
        assert!(formatted("%1$s%1$s", &[Some(&long)]).is_err());
    }

    #[test]
    fn patterns_have_one_escape() {
        for (written, escape, pattern) in [
            ("pg/_%", Some('/'), "pg\\_%"),
            ("a//b/%", Some('/'), "a/b\\%"),
            ("a\\_%", Some('/'), "a\\\\_%"),
            ("a\\_%", Some('\\'), "a\\_%"),
            ("a\\_", None, "a\\\\_"),
            ("a/", Some('/'), "a/"),
            ("aéxb", Some('é'), "axb"),
        ] {
            assert_eq!(escaped(written, escape).expect(written), pattern, "{written} {escape:?}");
        }
        assert!(escaped(&"\\".repeat(LONGEST), None).is_err());
    }
}
