//! Parameters of prepared statements, from Postgres's text and binary to the engine's scalars. A value that cannot be
//! read is named by its number and type, and never said.

use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit};
use chrono::{DateTime, NaiveDate};
use datafusion::common::ScalarValue;
use pgwire::{
    api::Type,
    error::{PgWireError, PgWireResult},
};
use uuid::Uuid;

use super::{
    encode::{BINARY, EPOCH_DAYS, EPOCH_MICROSECONDS},
    statements::fault,
};
use crate::query::array;

/// The zone of instants.
const ZONE: &str = "UTC";

/// Days from the last before the first year, where calendars count from, to 1970, where Arrow does.
const CALENDAR_DAYS: i32 = 719_163;

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// What a parameter is: as its client calls it, or as the hub found it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    /// Its type for the client.
    pub(super) kind: Type,
    /// The engine's type of it, where that was asked.
    pub(super) described: Option<DataType>,
}

impl Expected {
    /// Reads the value of parameter `number`, which counts from 1.
    ///
    /// # Errors
    /// 22P02 (22007 for dates and times) where a text cannot be read, 22P03 where something binary cannot, 0A000 for
    /// types that the hub has no values of.
    pub(super) fn read(&self, number: usize, value: Option<&[u8]>, format: i16) -> PgWireResult<ScalarValue> {
        let Some(bytes) = value else { return Ok(self.null()) };
        let kind = &self.kind;
        let scalar = match format {
            BINARY => binary(kind, bytes),
            _ => utf8(bytes).and_then(|value| text(kind, value)),
        };
        let scalar = scalar.ok_or_else(|| self.malformed(number, format))?;
        // What the client named wins; what the hub found is met where nothing is lost by it.
        let met = self.described.as_ref().and_then(|described| scalar.cast_to(described).ok());
        Ok(match met {
            Some(met) if met.cast_to(&scalar.data_type()).is_ok_and(|back| back == scalar) => met,
            _ => scalar,
        })
    }

    fn null(&self) -> ScalarValue {
        let kind = self.described.clone().or_else(|| arrow_type(&self.kind));
        kind.and_then(|kind| ScalarValue::try_new_null(&kind).ok()).unwrap_or(ScalarValue::Null)
    }

    fn malformed(&self, number: usize, format: i16) -> PgWireError {
        let kind = self.kind.name();
        if arrow_type(&self.kind).is_none() {
            return fault("0A000", format!("parameter ${number} is of type {kind}, which the hub has no values of"));
        }
        let code = match self.kind {
            _ if format == BINARY => "22P03",
            Type::DATE | Type::TIME | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::INTERVAL => "22007",
            _ => "22P02",
        };
        fault(code, format!("the value of parameter ${number} cannot be read as {kind}"))
    }
}

/// NULL of a type of Postgres; of none where the hub has no values of it.
pub(super) fn null_of(kind: Type) -> ScalarValue {
    arrow_type(&kind).and_then(|kind| ScalarValue::try_new_null(&kind).ok()).unwrap_or(ScalarValue::Null)
}

/// The engine's type for a type of Postgres; nothing for those the hub has no values of.
fn arrow_type(kind: &Type) -> Option<DataType> {
    use DataType as D;
    Some(match *kind {
        Type::BOOL => D::Boolean,
        Type::INT2 => D::Int16,
        Type::INT4 => D::Int32,
        Type::INT8 | Type::OID | Type::REGCLASS | Type::REGTYPE => D::Int64,
        Type::FLOAT4 => D::Float32,
        Type::FLOAT8 => D::Float64,
        Type::NUMERIC => D::Decimal128(38, 10),
        Type::DATE => D::Date32,
        Type::TIME => D::Time64(TimeUnit::Microsecond),
        Type::TIMESTAMP => D::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => D::Timestamp(TimeUnit::Microsecond, Some(ZONE.into())),
        Type::INTERVAL => D::Interval(IntervalUnit::MonthDayNano),
        Type::BYTEA => D::Binary,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::CHAR => D::Utf8,
        Type::UUID | Type::JSON | Type::JSONB | Type::XML => D::Utf8,
        _ => D::new_list(arrow_type(&element(kind)?)?, true),
    })
}

/// The type of the elements of a type of lists.
fn element(kind: &Type) -> Option<Type> {
    Some(match *kind {
        Type::BOOL_ARRAY => Type::BOOL,
        Type::BYTEA_ARRAY => Type::BYTEA,
        Type::INT2_ARRAY => Type::INT2,
        Type::INT4_ARRAY => Type::INT4,
        Type::INT8_ARRAY => Type::INT8,
        Type::FLOAT4_ARRAY => Type::FLOAT4,
        Type::FLOAT8_ARRAY => Type::FLOAT8,
        Type::NUMERIC_ARRAY => Type::NUMERIC,
        Type::DATE_ARRAY => Type::DATE,
        Type::TIME_ARRAY => Type::TIME,
        Type::TIMESTAMP_ARRAY => Type::TIMESTAMP,
        Type::TIMESTAMPTZ_ARRAY => Type::TIMESTAMPTZ,
        Type::TEXT_ARRAY => Type::TEXT,
        Type::VARCHAR_ARRAY => Type::VARCHAR,
        Type::BPCHAR_ARRAY => Type::BPCHAR,
        Type::NAME_ARRAY => Type::NAME,
        Type::OID_ARRAY => Type::OID,
        Type::UUID_ARRAY => Type::UUID,
        _ => return None,
    })
}

/// A value in Postgres's text; nothing where it cannot be read.
fn text(kind: &Type, value: &str) -> Option<ScalarValue> {
    let bare = value.trim();
    Some(match *kind {
        Type::BOOL => ScalarValue::Boolean(Some(truth(bare)?)),
        Type::INT2 => ScalarValue::Int16(Some(bare.parse().ok()?)),
        Type::INT4 => ScalarValue::Int32(Some(bare.parse().ok()?)),
        Type::INT8 | Type::OID => ScalarValue::Int64(Some(bare.parse().ok()?)),
        Type::FLOAT4 => ScalarValue::Float32(Some(bare.parse().ok()?)),
        Type::FLOAT8 => ScalarValue::Float64(Some(bare.parse().ok()?)),
        Type::NUMERIC => decimal(bare)?,
        Type::BYTEA => ScalarValue::Binary(Some(bytes(value)?)),
        Type::UUID => ScalarValue::Utf8(Some(Uuid::parse_str(bare).ok()?.to_string())),
        Type::DATE | Type::TIME | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::INTERVAL => {
            ScalarValue::Utf8(Some(bare.to_owned())).cast_to(&arrow_type(kind)?).ok()?
        }
        _ => match element(kind) {
            Some(element) => {
                let elements = array::elements(bare)?;
                let read = |value: Option<String>| match value {
                    Some(value) => text(&element, &value),
                    None => ScalarValue::try_new_null(&arrow_type(&element)?).ok(),
                };
                list(&element, elements.into_iter().map(read).collect::<Option<Vec<_>>>()?)?
            }
            None => {
                arrow_type(kind)?;
                ScalarValue::Utf8(Some(value.to_owned()))
            }
        },
    })
}

/// A value in Postgres's binary form; nothing where it cannot be read.
fn binary(kind: &Type, value: &[u8]) -> Option<ScalarValue> {
    Some(match *kind {
        Type::BOOL => ScalarValue::Boolean(Some(match value {
            [byte] => *byte != 0,
            _ => return None,
        })),
        Type::INT2 => ScalarValue::Int16(Some(i16::from_be_bytes(value.try_into().ok()?))),
        Type::INT4 => ScalarValue::Int32(Some(i32::from_be_bytes(value.try_into().ok()?))),
        Type::INT8 => ScalarValue::Int64(Some(i64::from_be_bytes(value.try_into().ok()?))),
        Type::OID | Type::REGCLASS | Type::REGTYPE => {
            ScalarValue::Int64(Some(u32::from_be_bytes(value.try_into().ok()?).into()))
        }
        Type::FLOAT4 => ScalarValue::Float32(Some(f32::from_be_bytes(value.try_into().ok()?))),
        Type::FLOAT8 => ScalarValue::Float64(Some(f64::from_be_bytes(value.try_into().ok()?))),
        Type::NUMERIC => decimal(&digits(value)?)?,
        Type::DATE => ScalarValue::Date32(Some(day(value)?)),
        Type::TIME => {
            let time = i64::from_be_bytes(value.try_into().ok()?);
            ScalarValue::Time64Microsecond(Some((0..DAY).contains(&time).then_some(time)?))
        }
        Type::TIMESTAMP => ScalarValue::TimestampMicrosecond(Some(instant(value)?), None),
        Type::TIMESTAMPTZ => ScalarValue::TimestampMicrosecond(Some(instant(value)?), Some(ZONE.into())),
        Type::INTERVAL => {
            let mut fields = Fields(value);
            let microseconds = i64::from_be_bytes(fields.take()?);
            let (days, months) = (fields.number()?, fields.number()?);
            let nanoseconds = microseconds.checked_mul(1000)?;
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, nanoseconds)))
        }
        Type::BYTEA => ScalarValue::Binary(Some(value.to_vec())),
        Type::UUID => ScalarValue::Utf8(Some(Uuid::from_slice(value).ok()?.to_string())),
        // Its first byte is a version.
        Type::JSONB => ScalarValue::Utf8(Some(utf8(value.strip_prefix(&[1])?)?.to_owned())),
        _ => match element(kind) {
            Some(element) => binary_list(&element, value)?,
            None => {
                arrow_type(kind)?;
                ScalarValue::Utf8(Some(utf8(value)?.to_owned()))
            }
        },
    })
}

/// Text as Postgres takes it, which has no zero byte.
fn utf8(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'))
}

/// A day in Arrow's count. Those that no calendar has, among them the ends of time that Postgres knows, are not read.
fn day(value: &[u8]) -> Option<i32> {
    let days = i32::from_be_bytes(value.try_into().ok()?).checked_add(EPOCH_DAYS)?;
    let date = NaiveDate::from_num_days_from_ce_opt(days.checked_add(CALENDAR_DAYS)?);
    date.map(|_| days)
}

/// The same for an instant.
fn instant(value: &[u8]) -> Option<i64> {
    let microseconds = i64::from_be_bytes(value.try_into().ok()?).checked_add(EPOCH_MICROSECONDS)?;
    DateTime::from_timestamp_micros(microseconds).map(|_| microseconds)
}

/// Reads fields of fixed length from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        self.bytes(LENGTH)?.try_into().ok()
    }

    fn number(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn short(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }
}

/// A list of one dimension.
fn binary_list(kind: &Type, value: &[u8]) -> Option<ScalarValue> {
    let mut fields = Fields(value);
    let dimensions = fields.number()?;
    // Whether there are NULLs, and the type of elements, which the statement has said already.
    fields.bytes(8)?;
    let count = match dimensions {
        0 => 0,
        1 => {
            let count = fields.number()?;
            fields.number()?;
            count
        }
        _ => return None,
    };
    let mut elements = Vec::new();
    for _ in 0..count {
        elements.push(match usize::try_from(fields.number()?) {
            Ok(length) => binary(kind, fields.bytes(length)?)?,
            Err(_) => ScalarValue::try_new_null(&arrow_type(kind)?).ok()?,
        });
    }
    fields.0.is_empty().then(|| list(kind, elements))?
}

/// Decimals of a list may differ in scale; the list has one type.
fn list(kind: &Type, elements: Vec<ScalarValue>) -> Option<ScalarValue> {
    let wanted = arrow_type(kind)?;
    let elements = elements.into_iter().map(|element| match element.data_type() == wanted {
        true => Some(element),
        false => element.cast_to(&wanted).ok(),
    });
    let elements = elements.collect::<Option<Vec<_>>>()?;
    Some(ScalarValue::List(ScalarValue::new_list_nullable(&elements, &wanted)))
}

fn truth(value: &str) -> Option<bool> {
    Some(match value.to_ascii_lowercase().as_str() {
        "t" | "tr" | "tru" | "true" | "y" | "ye" | "yes" | "on" | "1" => true,
        "f" | "fa" | "fal" | "fals" | "false" | "n" | "no" | "of" | "off" | "0" => false,
        _ => return None,
    })
}

/// A decimal with as many digits as it was written with.
fn decimal(value: &str) -> Option<ScalarValue> {
    let (mantissa, power) = match value.split_once(['e', 'E']) {
        Some((mantissa, power)) => (mantissa, power.parse::<i32>().ok()?),
        None => (value, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{part}");
    let unsigned = digits.trim_start_matches(['+', '-']);
    if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i128 = digits.parse().ok()?;
    let scale = i32::try_from(part.len()).ok()?.checked_sub(power)?;
    let (number, scale) = match u32::try_from(scale) {
        Ok(scale) => (number, scale),
        Err(_) => (number.checked_mul(10_i128.checked_pow(scale.unsigned_abs())?)?, 0),
    };
    // Precision and scale of the engine's decimals end at 38 digits.
    let scale = i8::try_from(scale).ok().filter(|scale| *scale <= 38)?;
    (number.unsigned_abs() < 10_u128.pow(38)).then_some(ScalarValue::Decimal128(Some(number), 38, scale))
}

/// A decimal in Postgres's binary form, as text; nothing where it is none, or no number.
fn digits(value: &[u8]) -> Option<String> {
    let mut fields = Fields(value);
    let (count, weight, sign, scale) = (fields.short()?, fields.short()?, fields.short()?, fields.short()?);
    let sign = match sign {
        0 => "",
        0x4000 => "-",
        _ => return None,
    };
    let (count, scale) = (usize::try_from(count).ok()?, usize::try_from(scale).ok()?);
    // 38 digits are ten groups; what is longer is not read.
    if count > 20 || scale > 76 || !(-20..=20).contains(&weight) {
        return None;
    }
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push(fields.short().filter(|group| (0..10_000).contains(group))?);
    }
    let group = |power: i16| {
        let at = usize::try_from(weight - power).ok();
        at.and_then(|at| groups.get(at)).copied().unwrap_or(0)
    };
    let whole: String = (0..=weight.max(0)).rev().map(|power| format!("{:04}", group(power))).collect();
    let part: String = (1..=20).map(|power| format!("{:04}", group(-power))).collect();
    Some(format!("{sign}{whole}.{}", part.get(..scale)?))
}

/// Bytes as `\x…`, or with the escapes of older servers.
fn bytes(value: &str) -> Option<Vec<u8>> {
    if let Some(digits) = value.strip_prefix("\\x") {
        let digits = digits.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| Some((digit(*pair.first()?)? << 4) | digit(*pair.get(1)?)?);
        return digits.chunks(2).map(pair).collect();
    }
    let (mut rest, mut read) = (value.as_bytes(), Vec::new());
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            read.push(*byte);
            continue;
        }
        if let Some(after) = rest.strip_prefix(b"\\") {
            read.push(b'\\');
            rest = after;
            continue;
        }
        let (octal, after) = rest.split_at_checked(3)?;
        read.push(u8::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok()?);
        rest = after;
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &Type, value: &[u8], format: i16) -> Result<ScalarValue, String> {
        let expected = Expected { kind: kind.clone(), described: None };
        expected.read(2, Some(value), format).map_err(|error| match error {
            PgWireError::UserError(info) => format!("{}: {}", info.code, info.message),
            _ => "another".into(),
        })
    }

    fn same(kind: &Type, text: &str, binary: &[u8], value: ScalarValue) {
        assert_eq!(read(kind, text.as_bytes(), 0), Ok(value.clone()), "{text}");
        assert_eq!(read(kind, binary, BINARY), Ok(value), "{text}");
    }

    #[test]
    fn both_forms_of_a_value_are_one() {
        same(&Type::BOOL, "t", &[1], ScalarValue::from(true));
        same(&Type::INT2, "-7", &[0xff, 0xf9], ScalarValue::from(-7_i16));
        same(&Type::INT4, " 258 ", &[0, 0, 1, 2], ScalarValue::from(258_i32));
        same(&Type::INT8, "3", &[0, 0, 0, 0, 0, 0, 0, 3], ScalarValue::from(3_i64));
        same(&Type::FLOAT4, "1", &[0x3f, 0x80, 0, 0], ScalarValue::from(1.0_f32));
        same(&Type::FLOAT8, "-2e0", &[0xc0, 0, 0, 0, 0, 0, 0, 0], ScalarValue::from(-2.0_f64));
        let minus = [0, 3, 0, 1, 0x40, 0, 0, 2, 0, 1, 0x09, 0x29, 0x1a, 0x2c];
        same(&Type::NUMERIC, "-12345.67", &minus, ScalarValue::Decimal128(Some(-1_234_567), 38, 2));
        let small = [0, 1, 0xff, 0xff, 0, 0, 0, 2, 0x01, 0xf4];
        same(&Type::NUMERIC, "0.05", &small, ScalarValue::Decimal128(Some(5), 38, 2));
        same(&Type::TEXT, "家 庭", "家 庭".as_bytes(), ScalarValue::from("家 庭"));
        same(&Type::VARCHAR, " a", b" a", ScalarValue::from(" a"));
        same(&Type::DATE, "2000-01-02", &[0, 0, 0, 1], ScalarValue::Date32(Some(10_958)));
        let second = [0, 0, 0, 0, 0, 0x0f, 0x42, 0x40];
        let instant = Some(946_684_801_000_000);
        same(&Type::TIMESTAMP, "2000-01-01 00:00:01", &second, ScalarValue::TimestampMicrosecond(instant, None));
        let zoned = ScalarValue::TimestampMicrosecond(instant, Some("UTC".into()));
        same(&Type::TIMESTAMPTZ, "2000-01-01 08:00:01+08:00", &second, zoned);
        same(&Type::BYTEA, "\\x00fe", &[0, 0xfe], ScalarValue::Binary(Some(vec![0, 0xfe])));
        let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        same(&Type::UUID, uuid, Uuid::parse_str(uuid).unwrap().as_bytes(), ScalarValue::from(uuid));
        let months = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1];
        let interval = ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(1, 2, 0)));
        assert_eq!(read(&Type::INTERVAL, &months, BINARY), Ok(interval));
    }

    #[test]
    fn numbers_have_the_digits_they_were_written_with() {
        let decimal = |text: &str| read(&Type::NUMERIC, text.as_bytes(), 0).ok();
        assert_eq!(decimal("1.50"), Some(ScalarValue::Decimal128(Some(150), 38, 2)));
        assert_eq!(decimal("1.5e3"), Some(ScalarValue::Decimal128(Some(1500), 38, 0)));
        assert_eq!(decimal("15e-3"), Some(ScalarValue::Decimal128(Some(15), 38, 3)));
        assert_eq!(decimal("-.5"), Some(ScalarValue::Decimal128(Some(-5), 38, 1)));
        assert_eq!(decimal("1.2.3"), None);
        assert_eq!(decimal(&"9".repeat(39)), None);
    }

    #[test]
    fn lists() {
        let wanted = |elements: &[Option<&str>]| {
            let elements: Vec<_> = elements.iter().map(|element| ScalarValue::from(*element)).collect();
            ScalarValue::List(ScalarValue::new_list_nullable(&elements, &DataType::Utf8))
        };
        let list = |text: &str| read(&Type::TEXT_ARRAY, text.as_bytes(), 0).ok();
        assert_eq!(list("{}"), Some(wanted(&[])));
        assert_eq!(
            list("{a, \"b,\\\"c\\\\\",NULL,\"null\",\"\"}"),
            Some(wanted(&[Some("a"), Some("b,\"c\\"), None, Some("null"), Some("")]))
        );
        for broken in ["", "{a", "{a,}", "{\"a}", "{{a},{b}}", "{a}x", "{\"a\"b}"] {
            assert_eq!(list(broken), None, "{broken}");
        }
        let head = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1];
        let body = [0, 0, 0, 4, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff];
        let numbers = [ScalarValue::Int32(Some(7)), ScalarValue::Int32(None)];
        let numbers = ScalarValue::List(ScalarValue::new_list_nullable(&numbers, &DataType::Int32));
        assert_eq!(read(&Type::INT4_ARRAY, &[&head[..], &body[..]].concat(), BINARY), Ok(numbers));
        assert!(read(&Type::INT4_ARRAY, &head, BINARY).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_named_and_not_said() {
        for (kind, format, value, said) in [
            (Type::INT4, 0, &b"secret"[..], "22P02: the value of parameter $2 cannot be read as int4"),
            (Type::INT4, 0, &b"99999999999"[..], "22P02: the value of parameter $2 cannot be read as int4"),
            (Type::INT4, BINARY, &b"secret"[..], "22P03: the value of parameter $2 cannot be read as int4"),
            (Type::BOOL, 0, &b"perhaps"[..], "22P02: the value of parameter $2 cannot be read as bool"),
            (Type::DATE, 0, &b"secret"[..], "22007: the value of parameter $2 cannot be read as date"),
            (Type::UUID, BINARY, &b"secret"[..], "22P03: the value of parameter $2 cannot be read as uuid"),
            (Type::TEXT, 0, &b"\xff"[..], "22P02: the value of parameter $2 cannot be read as text"),
            (Type::TEXT, 0, &b"a\0b"[..], "22P02: the value of parameter $2 cannot be read as text"),
            (Type::TEXT, BINARY, &b"a\0b"[..], "22P03: the value of parameter $2 cannot be read as text"),
            (Type::BYTEA, 0, &b"\\x0"[..], "22P02: the value of parameter $2 cannot be read as bytea"),
            (Type::INET, 0, &b"::1"[..], "0A000: parameter $2 is of type inet, which the hub has no values of"),
        ] {
            assert_eq!(read(&kind, value, format), Err(said.to_owned()));
        }
    }

    #[test]
    fn times_that_no_calendar_has_are_not_read() {
        let (days, instants) =
            ([i32::MIN, 2_145_031_948, i32::MAX], [i64::MIN, i64::MAX - EPOCH_MICROSECONDS, i64::MAX]);
        for day in days {
            assert!(read(&Type::DATE, &day.to_be_bytes(), BINARY).is_err(), "{day}");
        }
        for instant in instants {
            assert!(read(&Type::TIMESTAMP, &instant.to_be_bytes(), BINARY).is_err(), "{instant}");
            assert!(read(&Type::TIMESTAMPTZ, &instant.to_be_bytes(), BINARY).is_err(), "{instant}");
        }
        for time in [i64::MIN, -1, DAY, i64::MAX] {
            assert!(read(&Type::TIME, &time.to_be_bytes(), BINARY).is_err(), "{time}");
        }
        let last = ScalarValue::Time64Microsecond(Some(DAY - 1));
        assert_eq!(read(&Type::TIME, &(DAY - 1).to_be_bytes(), BINARY), Ok(last));
        // Four thousand years before 2000.
        let early = ScalarValue::Date32(Some(EPOCH_DAYS - 1_460_969));
        assert_eq!(read(&Type::DATE, &(-1_460_969_i32).to_be_bytes(), BINARY), Ok(early));
    }

    #[test]
    fn what_the_hub_found_is_met_where_it_can_be() {
        let expected = Expected { kind: Type::INT8, described: Some(DataType::Int32) };
        assert_eq!(expected.read(1, Some(b"7"), 0).unwrap(), ScalarValue::Int32(Some(7)));
        assert_eq!(expected.read(1, Some(b"7000000000"), 0).unwrap(), ScalarValue::Int64(Some(7_000_000_000)));
        assert_eq!(expected.read(1, None, 0).unwrap(), ScalarValue::Int32(None));
        let half = Expected { kind: Type::FLOAT8, described: Some(DataType::Int64) };
        assert_eq!(half.read(1, Some(b"1.5"), 0).unwrap(), ScalarValue::Float64(Some(1.5)));
        assert_eq!(half.read(1, Some(b"2"), 0).unwrap(), ScalarValue::Int64(Some(2)));
        let unknown = Expected { kind: Type::INET, described: None };
        assert_eq!(unknown.read(1, None, 0).unwrap(), ScalarValue::Null);
    }
}
