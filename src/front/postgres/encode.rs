//! Rows as Postgres writes them, in text and in binary. Knows Arrow's types and Postgres's forms, and nothing of
//! where rows come from.

use std::{fmt::Write as _, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt64Array, timezone::Tz},
    compute::{CastOptions, cast_with_options, take_record_batch},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Decimal256Type, Field, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, IntervalMonthDayNanoType, IntervalUnit, Schema, SchemaRef, Time64MicrosecondType, TimeUnit,
        TimestampMicrosecondType,
    },
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use arrow_pg::datatypes::{field_into_pg_type, is_pg_char_field};
use bytes::{BufMut, BytesMut};
use chrono::{Datelike, NaiveDate, Offset, TimeZone};
use pgwire::{
    api::Type,
    messages::data::{DataRow, FieldDescription, RowDescription},
};

use crate::{
    disclose::ColumnExposure,
    error::{Error, Result},
    hub::Room,
};

/// The code by which Postgres calls its text form.
pub(super) const TEXT: i16 = 0;

/// The code by which Postgres calls its binary form.
pub(super) const BINARY: i16 = 1;

/// Days from 1970, where Arrow counts from, to 2000, where Postgres does.
pub(super) const EPOCH_DAYS: i32 = 10_957;

/// The same in microseconds.
pub(super) const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// Rows in memory, in the types that Postgres has.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    count: usize,
    /// What they take in memory, shared with the rows that they were cut from.
    room: Room,
}

impl Rows {
    /// Rows that were let out.
    ///
    /// # Errors
    /// [`Error::DataError`] where a value has no form in Postgres.
    pub(super) fn new(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Self> {
        Self::named(schema, &[], batches)
    }

    /// Rows that were let out, under the names that the hub gave the columns, where it gave some.
    ///
    /// # Errors
    /// [`Error::DataError`] where a value has no form in Postgres.
    pub(super) fn named(schema: &Schema, names: &[ColumnExposure], batches: &[RecordBatch]) -> Result<Self> {
        let schema = plain_schema(schema, names);
        let plain = |batch: &RecordBatch| {
            let columns = batch.columns().iter().map(plain_array).collect::<Result<_>>()?;
            RecordBatch::try_new(Arc::clone(&schema), columns).map_err(Error::internal)
        };
        let batches = batches.iter().map(plain).collect::<Result<Vec<_>>>()?;
        let count = batches.iter().map(RecordBatch::num_rows).sum();
        Ok(Self { schema, batches, count, room: Room::default() })
    }

    /// The same rows with what they take in memory.
    pub(super) fn keeping(self, room: Room) -> Self {
        Self { room, ..self }
    }

    /// Rows of text, one inner list a row.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub(super) fn texts(names: &[impl AsRef<str>], rows: &[Vec<Option<String>>]) -> Result<Self> {
        let schema = text_schema(names);
        let column = |at: usize| {
            let texts = rows.iter().map(|row| row.get(at).and_then(Option::as_deref));
            Arc::new(texts.collect::<StringArray>()) as ArrayRef
        };
        let columns = (0..names.len()).map(column).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(Error::internal)?;
        Ok(Self { schema, batches: vec![batch], count: rows.len(), room: Room::default() })
    }

    /// The same rows in the types of a schema that was promised before; nothing where they do not fit it, or where a
    /// value would become another.
    pub(super) fn promised(self, promised: &SchemaRef) -> Option<Self> {
        let (had, wanted) = (self.schema.fields(), promised.fields());
        if had.len() != wanted.len() {
            return None;
        }
        if had.iter().zip(wanted).all(|(had, wanted)| had.data_type() == wanted.data_type()) {
            return Some(self);
        }
        let fitted = |batch: &RecordBatch| {
            let columns = batch.columns().iter().zip(wanted);
            let columns = columns.map(|(column, field)| exactly(column, field.data_type()));
            RecordBatch::try_new(Arc::clone(promised), columns.collect::<Result<_, _>>()?)
        };
        let batches = self.batches.iter().map(fitted).collect::<Result<_, _>>().ok()?;
        Some(Self { schema: Arc::clone(promised), batches, count: self.count, room: self.room })
    }

    /// Names and types of the columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many bytes they take, whatever buffers they share.
    pub(super) fn bytes(&self) -> usize {
        let columns = self.batches.iter().flat_map(RecordBatch::columns);
        let bytes = columns.map(|column| column.to_data().get_slice_memory_size().unwrap_or(usize::MAX));
        bytes.fold(0, usize::saturating_add)
    }

    /// Some of the rows, without a copy; fewer where they end.
    pub(super) fn range(&self, from: usize, count: usize) -> Self {
        let (mut skip, mut left, mut batches) = (from, count, Vec::new());
        for batch in &self.batches {
            if left == 0 {
                break;
            }
            if skip >= batch.num_rows() {
                skip -= batch.num_rows();
                continue;
            }
            let taken = left.min(batch.num_rows() - skip);
            batches.push(batch.slice(skip, taken));
            (skip, left) = (0, left - taken);
        }
        let count = count - left;
        // None of them keep nothing in memory.
        let room = if batches.is_empty() { Room::default() } else { self.room.clone() };
        Self { schema: Arc::clone(&self.schema), batches, count, room }
    }

    /// The rows in reverse, copied, since a slice for each row would take more than the rows do.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub(super) fn reversed(&self) -> Result<Self> {
        let reversed = |batch: &RecordBatch| {
            let rows = u64::try_from(batch.num_rows()).map_err(Error::internal)?;
            take_record_batch(batch, &UInt64Array::from_iter_values((0..rows).rev())).map_err(Error::internal)
        };
        let batches = self.batches.iter().rev().map(reversed).collect::<Result<_>>()?;
        Ok(Self { schema: Arc::clone(&self.schema), batches, count: self.count, room: self.room.clone() })
    }

    /// Each row, as a batch and its place in it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RecordBatch, usize)> {
        self.batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)))
    }
}

/// The schema of a few columns of text.
pub(super) fn text_schema(names: &[impl AsRef<str>]) -> SchemaRef {
    let fields = names.iter().map(|name| Field::new(name.as_ref(), DataType::Utf8, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A schema in the types that Postgres has, under the names that the hub gave the columns, where it gave some.
pub(super) fn plain_schema(schema: &Schema, columns: &[ColumnExposure]) -> SchemaRef {
    let fields = schema.fields().iter().enumerate().map(|(at, field)| {
        let name = columns.get(at).map_or(field.name(), |column| &column.name);
        Field::new(name, plain(field.data_type()), true).with_metadata(field.metadata().clone())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The form of one column of an answer, where the client named none, one for all, or one for each.
pub(super) fn format_of(formats: &[i16], column: usize) -> i16 {
    match formats {
        [] => TEXT,
        [all] => *all,
        each => each.get(column).copied().unwrap_or(TEXT),
    }
}

/// What is said of the columns before the rows.
pub(super) fn description(schema: &Schema, formats: &[i16]) -> RowDescription {
    let columns = schema.fields().iter().enumerate().map(|(at, field)| {
        let kind = pg_type(field);
        let (length, modifier) = (length(&kind), modifier(field.data_type()));
        FieldDescription::new(field.name().clone(), 0, 0, kind.oid(), length, modifier, format_of(formats, at))
    });
    RowDescription::new(columns.collect())
}

/// What Postgres calls the type of a column.
pub(super) fn pg_type(field: &Field) -> Type {
    match plain(field.data_type()) {
        DataType::Decimal256(..) => Type::NUMERIC,
        DataType::Utf8 if is_pg_char_field(field) => Type::CHAR,
        // Things of the catalogue by number say in their metadata which they are.
        DataType::Int32 => {
            let plain = Field::new("", DataType::Int32, true).with_metadata(field.metadata().clone());
            field_into_pg_type(&Arc::new(plain)).unwrap_or(Type::INT4)
        }
        kind => field_into_pg_type(&Arc::new(Field::new("", kind, true))).unwrap_or(Type::TEXT),
    }
}

/// One row as a message.
///
/// # Errors
/// [`Error::DataError`] where a value has no form in Postgres.
pub(super) fn data_row(batch: &RecordBatch, row: usize, formats: &[i16]) -> Result<DataRow> {
    let mut out = BytesMut::with_capacity(32 * batch.num_columns());
    for (at, column) in batch.columns().iter().enumerate() {
        match format_of(formats, at) {
            BINARY => put_binary(batch.schema_ref().field(at), column, row, &mut out)?,
            _ => put(column, row, &mut out, |out| write_text(column, row, out))?,
        }
    }
    Ok(DataRow::new(out, i16::try_from(batch.num_columns()).map_err(Error::internal)?))
}

/// A value in binary after its length, which is −1 for NULL.
///
/// # Errors
/// [`Error::DataError`] where it has no form in Postgres.
pub(super) fn put_binary(field: &Field, column: &ArrayRef, row: usize, out: &mut BytesMut) -> Result<()> {
    put(column, row, out, |out| match is_pg_char_field(field) {
        // One byte, whatever its text has.
        true => {
            out.put_u8(column.as_string_opt::<i32>().and_then(|text| text.value(row).bytes().next()).unwrap_or(0));
            Ok(())
        }
        false => write_binary(column, row, out),
    })
}

fn put(
    column: &ArrayRef,
    row: usize,
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<()>,
) -> Result<()> {
    let at = out.len();
    out.put_i32(-1);
    if column.is_null(row) {
        return Ok(());
    }
    write(out)?;
    let length = i32::try_from(out.len() - at - 4).map_err(|_| unwritable())?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// A value that is not NULL, in Postgres's text.
///
/// # Errors
/// [`Error::DataError`] where it has none.
pub(super) fn write_text(column: &dyn Array, row: usize, out: &mut BytesMut) -> Result<()> {
    use DataType as D;
    let written = match column.data_type() {
        D::Boolean => out.write_char(if column.as_boolean().value(row) { 't' } else { 'f' }),
        D::Int16 => write!(out, "{}", column.as_primitive::<Int16Type>().value(row)),
        D::Int32 => write!(out, "{}", column.as_primitive::<Int32Type>().value(row)),
        D::Int64 => write!(out, "{}", column.as_primitive::<Int64Type>().value(row)),
        D::Float32 => {
            let value = column.as_primitive::<Float32Type>().value(row);
            write_float(f64::from(value), &format!("{value:e}"), 6, out)
        }
        D::Float64 => {
            let value = column.as_primitive::<Float64Type>().value(row);
            write_float(value, &format!("{value:e}"), 15, out)
        }
        D::Decimal128(..) => out.write_str(&column.as_primitive::<Decimal128Type>().value_as_string(row)),
        D::Decimal256(..) => out.write_str(&column.as_primitive::<Decimal256Type>().value_as_string(row)),
        D::Utf8 => out.write_str(column.as_string::<i32>().value(row)),
        D::Binary => {
            let bytes = column.as_binary::<i32>().value(row);
            out.write_str("\\x").and_then(|()| bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")))
        }
        D::Date32 => {
            let days = column.as_primitive::<Date32Type>().value(row);
            let before = put_day(i64::from(days), out)?;
            out.write_str(before)
        }
        D::Time64(TimeUnit::Microsecond) => write_time(column.as_primitive::<Time64MicrosecondType>().value(row), out),
        D::Timestamp(TimeUnit::Microsecond, zone) => {
            let time = column.as_primitive::<TimestampMicrosecondType>().value(row);
            let offset = zone.as_deref().map(|zone| offset(zone, time));
            let local = time.checked_add(i64::from(offset.unwrap_or(0)) * SECOND).ok_or_else(unwritable)?;
            let before = put_day(local.div_euclid(DAY), out)?;
            out.put_u8(b' ');
            write_time(local.rem_euclid(DAY), out)
                .and_then(|()| offset.map_or(Ok(()), |offset| write_offset(offset, out)))
                .and_then(|()| out.write_str(before))
        }
        D::Interval(IntervalUnit::MonthDayNano) => {
            let (months, days, nanoseconds) =
                IntervalMonthDayNanoType::to_parts(column.as_primitive::<IntervalMonthDayNanoType>().value(row));
            write_interval(months, days, nanoseconds / 1000, out)
        }
        D::List(_) => return write_list(&column.as_list::<i32>().value(row), out),
        kind => return Err(Error::internal(format!("no text form of {kind}"))),
    };
    written.map_err(Error::internal)
}

/// A value that is not NULL, in Postgres's binary form.
fn write_binary(column: &dyn Array, row: usize, out: &mut BytesMut) -> Result<()> {
    use DataType as D;
    match column.data_type() {
        D::Boolean => out.put_u8(u8::from(column.as_boolean().value(row))),
        D::Int16 => out.put_i16(column.as_primitive::<Int16Type>().value(row)),
        D::Int32 => out.put_i32(column.as_primitive::<Int32Type>().value(row)),
        D::Int64 => out.put_i64(column.as_primitive::<Int64Type>().value(row)),
        D::Float32 => out.put_f32(column.as_primitive::<Float32Type>().value(row)),
        D::Float64 => out.put_f64(column.as_primitive::<Float64Type>().value(row)),
        D::Decimal128(..) => write_numeric(&column.as_primitive::<Decimal128Type>().value_as_string(row), out)?,
        D::Decimal256(..) => write_numeric(&column.as_primitive::<Decimal256Type>().value_as_string(row), out)?,
        D::Utf8 => out.put_slice(column.as_string::<i32>().value(row).as_bytes()),
        D::Binary => out.put_slice(column.as_binary::<i32>().value(row)),
        D::Date32 => {
            let days = column.as_primitive::<Date32Type>().value(row);
            out.put_i32(days.checked_sub(EPOCH_DAYS).ok_or_else(unwritable)?);
        }
        D::Time64(TimeUnit::Microsecond) => out.put_i64(column.as_primitive::<Time64MicrosecondType>().value(row)),
        D::Timestamp(TimeUnit::Microsecond, _) => {
            let time = column.as_primitive::<TimestampMicrosecondType>().value(row);
            out.put_i64(time.checked_sub(EPOCH_MICROSECONDS).ok_or_else(unwritable)?);
        }
        D::Interval(IntervalUnit::MonthDayNano) => {
            let (months, days, nanoseconds) =
                IntervalMonthDayNanoType::to_parts(column.as_primitive::<IntervalMonthDayNanoType>().value(row));
            out.put_i64(nanoseconds / 1000);
            out.put_i32(days);
            out.put_i32(months);
        }
        D::List(element) => {
            let values = column.as_list::<i32>().value(row);
            out.put_i32(i32::from(!values.is_empty()));
            out.put_i32(i32::from(values.null_count() > 0));
            out.put_u32(pg_type(element).oid());
            if !values.is_empty() {
                out.put_i32(i32::try_from(values.len()).map_err(|_| unwritable())?);
                // Where the first element stands.
                out.put_i32(1);
            }
            for at in 0..values.len() {
                put(&values, at, out, |out| write_binary(&values, at, out))?;
            }
        }
        kind => return Err(Error::internal(format!("no binary form of {kind}"))),
    }
    Ok(())
}

const FORMAT: FormatOptions<'static> = FormatOptions::new().with_display_error(false);

/// Casts that fail where a value has no counterpart.
const EXACT: CastOptions<'static> = CastOptions { safe: false, format_options: FORMAT };

/// Values in another type, from which they could be read back. Text has all of them.
fn exactly(column: &ArrayRef, kind: &DataType) -> std::result::Result<ArrayRef, ArrowError> {
    let cast = cast_with_options(column, kind, &EXACT)?;
    if *kind == DataType::Utf8 || column.data_type() == kind {
        return Ok(cast);
    }
    let back = cast_with_options(&cast, column.data_type(), &EXACT)?;
    match back.as_ref() == column.as_ref() {
        true => Ok(cast),
        false => Err(ArrowError::CastError("a value would become another".into())),
    }
}

/// The type among those that Postgres has in which values of a type are written; text where it has none.
fn plain(kind: &DataType) -> DataType {
    use DataType as D;
    match kind {
        D::Boolean | D::Int16 | D::Int32 | D::Int64 | D::Float32 | D::Float64 => kind.clone(),
        D::Decimal128(..) | D::Decimal256(..) | D::Utf8 | D::Binary | D::Date32 => kind.clone(),
        D::Int8 | D::UInt8 => D::Int16,
        D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float16 => D::Float32,
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) => D::Decimal128(*precision, *scale),
        D::BinaryView | D::LargeBinary | D::FixedSizeBinary(_) => D::Binary,
        D::Date64 => D::Date32,
        D::Time32(_) | D::Time64(_) => D::Time64(TimeUnit::Microsecond),
        D::Timestamp(_, zone) => D::Timestamp(TimeUnit::Microsecond, zone.clone()),
        D::Interval(_) | D::Duration(_) => D::Interval(IntervalUnit::MonthDayNano),
        D::Dictionary(_, value) => plain(value),
        D::List(element)
        | D::LargeList(element)
        | D::FixedSizeList(element, _)
        | D::ListView(element)
        | D::LargeListView(element)
            if !element.data_type().is_nested() =>
        {
            D::List(Arc::new(Field::new_list_field(plain(element.data_type()), true)))
        }
        _ => D::Utf8,
    }
}

fn plain_array(array: &ArrayRef) -> Result<ArrayRef> {
    use DataType as D;
    let had = array.data_type();
    let wanted = plain(had);
    if *had == wanted {
        return Ok(Arc::clone(array));
    }
    match had {
        D::Struct(_) | D::Map(..) | D::Union(..) | D::RunEndEncoded(..) => as_written(array),
        kind if kind.is_nested() && wanted == D::Utf8 => as_written(array),
        _ => cast_with_options(array, &wanted, &EXACT).map_err(|_| unwritable()),
    }
}

/// Values of types that Postgres does not have, as Arrow writes them.
fn as_written(array: &ArrayRef) -> Result<ArrayRef> {
    let formatter = ArrayFormatter::try_new(array.as_ref(), &FORMAT).map_err(Error::internal)?;
    let text = |row| match array.is_null(row) {
        true => Ok(None),
        false => formatter.value(row).try_to_string().map(Some).map_err(|_| unwritable()),
    };
    Ok(Arc::new((0..array.len()).map(text).collect::<Result<StringArray>>()?))
}

/// Days, instants and decimals beyond what Postgres can hold have no form there.
fn unwritable() -> Error {
    Error::DataError("a value in the rows asked for cannot be written; cast it to text".into())
}

/// How many bytes a value of a type takes, −1 where that depends on the value.
fn length(kind: &Type) -> i16 {
    match *kind {
        Type::BOOL | Type::CHAR => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIME | Type::TIMESTAMP | Type::TIMESTAMPTZ => 8,
        Type::INTERVAL => 16,
        Type::REGCLASS | Type::REGTYPE | Type::REGPROC | Type::REGNAMESPACE | Type::REGROLE => 4,
        _ => -1,
    }
}

/// Precision and scale of a decimal as Postgres packs them, −1 for none.
fn modifier(kind: &DataType) -> i32 {
    match plain(kind) {
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) if scale >= 0 => {
            ((i32::from(precision) << 16) | i32::from(scale)) + 4
        }
        _ => -1,
    }
}

/// A number as Postgres writes it since version 12: the fewest digits that read back the same, with an exponent below
/// a ten-thousandth and from `places` digits before the point on. `scientific` is Rust's `{:e}`, which has just these
/// digits.
fn write_float(value: f64, scientific: &str, places: i32, out: &mut BytesMut) -> std::fmt::Result {
    if value.is_nan() {
        return out.write_str("NaN");
    }
    if value.is_infinite() {
        return out.write_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..places).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
    }
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(digits) => ("-", digits.replace('.', "")),
        None => ("", mantissa.replace('.', "")),
    };
    let before = usize::try_from(exponent + 1).unwrap_or(0);
    match exponent {
        ..0 => write!(out, "{sign}0.{}{digits}", "0".repeat(usize::try_from(-exponent - 1).unwrap_or(0))),
        _ if digits.len() <= before => write!(out, "{sign}{digits}{}", "0".repeat(before - digits.len())),
        _ => write!(out, "{sign}{}.{}", &digits[..before], &digits[before..]),
    }
}

/// Writes a day of the calendar, and says what stands at the end of the value where it was before our era.
fn put_day(days: i64, out: &mut BytesMut) -> Result<&'static str> {
    // Day 1 of chrono's count is the first of January of year 1.
    let day = i32::try_from(days + 719_163).ok().and_then(NaiveDate::from_num_days_from_ce_opt);
    let day = day.ok_or_else(unwritable)?;
    let (year, before) = match day.year() {
        year @ 1.. => (year.unsigned_abs(), ""),
        year => (year.unsigned_abs() + 1, " BC"),
    };
    match year {
        ..10_000 => put_digits::<4>(year, out),
        _ => out.put_slice(year.to_string().as_bytes()),
    }
    out.put_u8(b'-');
    put_digits::<2>(day.month(), out);
    out.put_u8(b'-');
    put_digits::<2>(day.day(), out);
    Ok(before)
}

/// Writes the last digits of a number, with zeros before it: most of what is written in text are days.
fn put_digits<const COUNT: usize>(mut number: u32, out: &mut BytesMut) {
    let mut digits = [b'0'; COUNT];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    out.put_slice(&digits);
}

/// How many seconds a zone is ahead of UTC at an instant. Zones that cannot be read are UTC.
fn offset(zone: &str, microseconds: i64) -> i32 {
    if zone == "UTC" {
        return 0;
    }
    let instant = chrono::DateTime::from_timestamp_micros(microseconds);
    match (zone.parse::<Tz>(), instant) {
        (Ok(zone), Some(instant)) => zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc(),
        _ => 0,
    }
}

fn write_offset(offset: i32, out: &mut BytesMut) -> std::fmt::Result {
    let (sign, seconds) = (if offset < 0 { '-' } else { '+' }, offset.abs());
    write!(out, "{sign}{:02}", seconds / 3600)?;
    match (seconds / 60 % 60, seconds % 60) {
        (0, 0) => Ok(()),
        (minutes, 0) => write!(out, ":{minutes:02}"),
        (minutes, seconds) => write!(out, ":{minutes:02}:{seconds:02}"),
    }
}

fn write_time(microseconds: i64, out: &mut BytesMut) -> std::fmt::Result {
    let seconds = microseconds / SECOND;
    match u32::try_from(seconds) {
        Ok(seconds @ 0..86_400) => {
            put_digits::<2>(seconds / 3600, out);
            out.put_u8(b':');
            put_digits::<2>(seconds / 60 % 60, out);
            out.put_u8(b':');
            put_digits::<2>(seconds % 60, out);
        }
        // Arrow's times may be beyond a day.
        _ => write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?,
    }
    write_fraction(microseconds % SECOND, out)
}

/// Microseconds after the point, without the zeros at the end.
fn write_fraction(microseconds: i64, out: &mut BytesMut) -> std::fmt::Result {
    match microseconds {
        0 => Ok(()),
        part => out.write_str(format!(".{part:06}").trim_end_matches('0')),
    }
}

/// In the style called `postgres`, which is a server's own.
fn write_interval(months: i32, days: i32, microseconds: i64, out: &mut BytesMut) -> std::fmt::Result {
    let mut empty = true;
    let mut below = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        let (space, plus) = (if empty { "" } else { " " }, if below && value > 0 { "+" } else { "" });
        write!(out, "{space}{plus}{value} {unit}{}", if value == 1 { "" } else { "s" })?;
        (empty, below) = (false, value < 0);
    }
    if microseconds == 0 && !empty {
        return Ok(());
    }
    let sign = match microseconds < 0 {
        true => "-",
        false if below => "+",
        false => "",
    };
    let (seconds, part) = (microseconds.unsigned_abs() / 1_000_000, microseconds % SECOND);
    let space = if empty { "" } else { " " };
    write!(out, "{space}{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    write_fraction(part.abs(), out)
}

fn write_list(values: &ArrayRef, out: &mut BytesMut) -> Result<()> {
    out.put_u8(b'{');
    for at in 0..values.len() {
        if at > 0 {
            out.put_u8(b',');
        }
        if values.is_null(at) {
            out.put_slice(b"NULL");
            continue;
        }
        let mut element = BytesMut::new();
        write_text(values, at, &mut element)?;
        let special = |byte: &u8| matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\' | b' ' | 9..=13);
        if !element.is_empty() && !element.eq_ignore_ascii_case(b"null") && !element.iter().any(special) {
            out.put_slice(&element);
            continue;
        }
        out.put_u8(b'"');
        for byte in element {
            if matches!(byte, b'"' | b'\\') {
                out.put_u8(b'\\');
            }
            out.put_u8(byte);
        }
        out.put_u8(b'"');
    }
    out.put_u8(b'}');
    Ok(())
}

/// A decimal in Postgres's binary form: digits to the base 10,000, the power of the first, the sign, and how many
/// decimal digits stand after the point.
fn write_numeric(text: &str, out: &mut BytesMut) -> Result<()> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (0x4000, digits),
        None => (0, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let zeros = |digits: &str| "0".repeat(digits.len().wrapping_neg() % 4);
    let aligned = format!("{}{whole}{part}{}", zeros(whole), zeros(part));
    let digit = |four: &[u8]| four.iter().fold(0, |number, digit| number * 10 + i16::from(digit & 0x0f));
    let groups: Vec<i16> = aligned.as_bytes().chunks(4).map(digit).collect();
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let trailing = groups.iter().rev().take_while(|group| **group == 0).count();
    let groups = groups.get(leading..groups.len() - trailing).unwrap_or_default();
    let short = |number: usize| i16::try_from(number).map_err(|_| unwritable());
    out.put_i16(short(groups.len())?);
    match groups.is_empty() {
        true => out.put_slice(&[0, 0, 0, 0]),
        false => {
            out.put_i16(short(whole.len().div_ceil(4))? - short(leading)? - 1);
            out.put_u16(sign);
        }
    }
    out.put_i16(short(part.len())?);
    groups.iter().for_each(|group| out.put_i16(*group));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::{
        array::{
            BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float32Array, Float64Array,
            Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, NullArray, StringViewArray,
            StructArray, Time64NanosecondArray, TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array,
        },
        datatypes::{Int32Type, IntervalMonthDayNano},
    };

    use super::*;
    use crate::dataset::{FieldType, layout::arrow_type};

    fn rows(column: impl Array + 'static) -> Rows {
        let schema = Arc::new(Schema::new(vec![Field::new("c", column.data_type().clone(), true)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(column)]).unwrap();
        Rows::new(&schema, &[batch]).unwrap()
    }

    /// The cells of a column, each in one form, after their length.
    fn cells(column: impl Array + 'static, format: i16) -> Vec<Option<Vec<u8>>> {
        let rows = rows(column);
        let cell = |(batch, row)| {
            let data = data_row(batch, row, &[format]).unwrap().data;
            let length = i32::from_be_bytes(data[..4].try_into().unwrap());
            assert_eq!(usize::try_from(length).unwrap_or(0), data.len() - 4);
            (length >= 0).then(|| data[4..].to_vec())
        };
        rows.iter().map(cell).collect()
    }

    fn texts(column: impl Array + 'static) -> Vec<String> {
        let text = |cell: Option<Vec<u8>>| cell.map_or_else(|| "NULL".into(), |cell| String::from_utf8(cell).unwrap());
        cells(column, TEXT).into_iter().map(text).collect()
    }

    fn kind(column: &DataType) -> (Type, i16, i32) {
        let field = Field::new("c", column.clone(), true);
        (pg_type(&field), length(&pg_type(&field)), modifier(column))
    }

    #[test]
    fn types_of_contracts_are_those_of_postgres() {
        for (had, wanted) in [
            (FieldType::Text, (Type::TEXT, -1, -1)),
            (FieldType::Boolean, (Type::BOOL, 1, -1)),
            (FieldType::Integer(8), (Type::INT2, 2, -1)),
            (FieldType::Integer(32), (Type::INT4, 4, -1)),
            (FieldType::Integer(64), (Type::INT8, 8, -1)),
            (FieldType::Decimal(10, 2), (Type::NUMERIC, -1, 655_366)),
            (FieldType::Double, (Type::FLOAT8, 8, -1)),
            (FieldType::Date, (Type::DATE, 4, -1)),
            (FieldType::Timestamp, (Type::TIMESTAMPTZ, 8, -1)),
        ] {
            assert_eq!(kind(&arrow_type(had)), wanted);
        }
        assert_eq!(kind(&DataType::Timestamp(TimeUnit::Nanosecond, None)).0, Type::TIMESTAMP);
        assert_eq!(kind(&DataType::Null).0, Type::TEXT);
        assert_eq!(kind(&DataType::UInt64).0, Type::NUMERIC);
        let list = DataType::LargeList(Arc::new(Field::new_list_field(DataType::Utf8View, true)));
        assert_eq!(kind(&list).0, Type::TEXT_ARRAY);
        assert_eq!(kind(&DataType::List(Arc::new(Field::new_list_field(list, true)))).0, Type::TEXT);
    }

    #[test]
    fn things_of_the_catalogue_keep_their_types() {
        let marked = |kind, key: &str, value: &str| {
            Field::new("c", kind, true).with_metadata(HashMap::from([(key.to_owned(), value.to_owned())]))
        };
        assert_eq!(pg_type(&marked(DataType::Int32, "pg.oid_alias", "oid")), Type::OID);
        assert_eq!(pg_type(&marked(DataType::Int64, "pg.oid_alias", "oid")), Type::INT8);
        let letter = marked(DataType::Utf8View, "pg.char", "");
        assert_eq!(pg_type(&letter), Type::CHAR);
        let mut out = BytesMut::new();
        put_binary(&letter, &(Arc::new(StringArray::from(vec!["r"])) as ArrayRef), 0, &mut out).unwrap();
        assert_eq!(&out[..], [0, 0, 0, 1, b'r']);
    }

    #[test]
    fn numbers() {
        assert_eq!(texts(Int16Array::from(vec![Some(-7), None])), ["-7", "NULL"]);
        assert_eq!(cells(Int16Array::from(vec![Some(-7), None]), BINARY), [Some(vec![0xff, 0xf9]), None]);
        assert_eq!(cells(Int32Array::from(vec![258]), BINARY), [Some(vec![0, 0, 1, 2])]);
        assert_eq!(texts(Int64Array::from(vec![i64::MIN])), ["-9223372036854775808"]);
        assert_eq!(cells(Int64Array::from(vec![3]), BINARY), [Some(vec![0, 0, 0, 0, 0, 0, 0, 3])]);
        assert_eq!(texts(BooleanArray::from(vec![true, false])), ["t", "f"]);
        assert_eq!(cells(BooleanArray::from(vec![true, false]), BINARY), [Some(vec![1]), Some(vec![0])]);
        assert_eq!(texts(UInt64Array::from(vec![u64::MAX])), ["18446744073709551615"]);
    }

    #[test]
    fn floats_have_the_fewest_digits_that_read_back() {
        let values = vec![0.0, -0.0, 0.1, 100.0, 1234.5, -1e-4, 1e-5, 123_456_789_012_345.0, 1e15, 1.5e300];
        let written = ["0", "-0", "0.1", "100", "1234.5", "-0.0001", "1e-05", "123456789012345", "1e+15", "1.5e+300"];
        assert_eq!(texts(Float64Array::from(values)), written);
        let odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        assert_eq!(texts(Float64Array::from(odd)), ["NaN", "Infinity", "-Infinity"]);
        assert_eq!(texts(Float32Array::from(vec![0.1, 999_999.0, 1e6])), ["0.1", "999999", "1e+06"]);
        assert_eq!(cells(Float64Array::from(vec![-2.0]), BINARY), [Some(vec![0xc0, 0, 0, 0, 0, 0, 0, 0])]);
        assert_eq!(cells(Float32Array::from(vec![1.0]), BINARY), [Some(vec![0x3f, 0x80, 0, 0])]);
    }

    #[test]
    fn decimals() {
        let decimals = |values: Vec<i128>| Decimal128Array::from(values).with_precision_and_scale(38, 2).unwrap();
        assert_eq!(texts(decimals(vec![0, 5, -1_234_567, 100])), ["0.00", "0.05", "-12345.67", "1.00"]);
        // Digits to the base 10,000: count, power of the first, sign, scale, digits.
        let binary = |value| cells(decimals(vec![value]), BINARY).remove(0).unwrap();
        assert_eq!(binary(0), [0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(binary(5), [0, 1, 0xff, 0xff, 0, 0, 0, 2, 0x01, 0xf4]);
        assert_eq!(binary(100), [0, 1, 0, 0, 0, 0, 0, 2, 0, 1]);
        assert_eq!(binary(-1_234_567), [0, 3, 0, 1, 0x40, 0, 0, 2, 0, 1, 0x09, 0x29, 0x1a, 0x2c]);
        // 12 millions: one digit, of the power 1, with nothing after it.
        assert_eq!(binary(1_200_000_000), [0, 1, 0, 1, 0, 0, 0, 2, 0x04, 0xb0]);
    }

    #[test]
    fn days_and_times() {
        let days = vec![Some(0), Some(10_957), Some(-719_163), Some(-719_528), Some(2_932_896), Some(2_932_897), None];
        let written =
            ["1970-01-01", "2000-01-01", "0001-12-31 BC", "0001-01-01 BC", "9999-12-31", "10000-01-01", "NULL"];
        assert_eq!(texts(Date32Array::from(days)), written);
        assert_eq!(cells(Date32Array::from(vec![10_958]), BINARY), [Some(vec![0, 0, 0, 1])]);
        let times = vec![0, -1, 1_700_000_000_123_000];
        let plain = TimestampMicrosecondArray::from(times.clone());
        assert_eq!(
            texts(plain.clone()),
            ["1970-01-01 00:00:00", "1969-12-31 23:59:59.999999", "2023-11-14 22:13:20.123"]
        );
        assert_eq!(texts(plain.clone().with_timezone("UTC"))[2], "2023-11-14 22:13:20.123+00");
        assert_eq!(texts(plain.clone().with_timezone("+05:30"))[0], "1970-01-01 05:30:00+05:30");
        assert_eq!(texts(plain.with_timezone("-03:00"))[2], "2023-11-14 19:13:20.123-03");
        let second = TimestampMicrosecondArray::from(vec![EPOCH_MICROSECONDS + 1]).with_timezone("UTC");
        assert_eq!(cells(second, BINARY), [Some(vec![0, 0, 0, 0, 0, 0, 0, 1])]);
        let fine = TimestampNanosecondArray::from(vec![1_500]);
        assert_eq!(texts(fine), ["1970-01-01 00:00:00.000001"]);
        assert_eq!(texts(Time64NanosecondArray::from(vec![3_723_500_000_000])), ["01:02:03.5"]);
    }

    #[test]
    fn what_postgres_cannot_write_is_refused_without_its_value() {
        let rows = rows(Date32Array::from(vec![i32::MAX]));
        let (batch, row) = rows.iter().next().unwrap();
        let said = data_row(batch, row, &[]).unwrap_err().to_string();
        assert_eq!(said, "a value in the rows asked for cannot be written; cast it to text");
    }

    #[test]
    fn intervals() {
        let interval = |months, days, microseconds: i64| {
            let value = IntervalMonthDayNano::new(months, days, microseconds * 1000);
            texts(IntervalMonthDayNanoArray::from(vec![value])).remove(0)
        };
        assert_eq!(interval(0, 0, 0), "00:00:00");
        assert_eq!(interval(14, 3, 14_706_789_000), "1 year 2 mons 3 days 04:05:06.789");
        assert_eq!(interval(-1, 1, 0), "-1 mons +1 day");
        assert_eq!(interval(0, -2, 1_000_000), "-2 days +00:00:01");
        assert_eq!(interval(0, 0, -1_500_000), "-00:00:01.5");
        let value = IntervalMonthDayNano::new(1, 2, 3_000);
        let binary = vec![0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1];
        assert_eq!(cells(IntervalMonthDayNanoArray::from(vec![Some(value), None]), BINARY), [Some(binary), None]);
    }

    #[test]
    fn texts_bytes_and_views() {
        assert_eq!(texts(StringViewArray::from(vec![Some("家庭"), Some(""), None])), ["家庭", "", "NULL"]);
        assert_eq!(texts(BinaryArray::from(vec![&b"\x00\xfe"[..]])), ["\\x00fe"]);
        assert_eq!(cells(BinaryArray::from(vec![&b"\x00\xfe"[..]]), BINARY), [Some(vec![0, 0xfe])]);
        assert_eq!(texts(NullArray::new(2)), ["NULL", "NULL"]);
        let words: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("a")].into_iter().collect();
        assert_eq!(texts(words), ["a", "NULL", "a"]);
        let pair = StructArray::from(vec![(
            Arc::new(Field::new("a", DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![1])) as ArrayRef,
        )]);
        assert_eq!(texts(pair), ["{a: 1}"]);
    }

    #[test]
    fn lists() {
        let numbers =
            ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), Some(vec![]), None]);
        assert_eq!(texts(numbers.clone()), ["{1,NULL}", "{}", "NULL"]);
        // Dimensions, whether there are NULLs, the type of elements, their number, where the first stands.
        let two = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1];
        let elements = [0, 0, 0, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        let none = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23];
        assert_eq!(cells(numbers, BINARY), [Some([&two[..], &elements[..]].concat()), Some(none), None]);
        let words = StringArray::from(vec!["a b", "", "null", "x\"y", "plain"]);
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([5]);
        let field = Arc::new(Field::new_list_field(DataType::Utf8, true));
        let words = ListArray::new(field, offsets, Arc::new(words), None);
        assert_eq!(texts(words), [r#"{"a b","","null","x\"y",plain}"#]);
    }

    #[test]
    fn rows_are_taken_in_parts_and_backwards() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, true)]));
        let batch = |from: i32, to: i32| {
            let numbers = Arc::new(Int32Array::from_iter_values(from..to));
            RecordBatch::try_new(Arc::clone(&schema), vec![numbers]).unwrap()
        };
        let rows = Rows::new(&schema, &[batch(0, 3), batch(3, 4), batch(4, 9)]).unwrap();
        let numbers = |rows: &Rows| {
            let number = |(batch, row): (&RecordBatch, usize)| batch.column(0).as_primitive::<Int32Type>().value(row);
            rows.iter().map(number).collect::<Vec<_>>()
        };
        assert_eq!((rows.count(), numbers(&rows).len()), (9, 9));
        assert_eq!(numbers(&rows.range(2, 3)), [2, 3, 4]);
        assert_eq!((rows.range(8, 5).count(), numbers(&rows.range(8, 5))), (1, vec![8]));
        assert_eq!(rows.range(9, 1).count(), 0);
        assert_eq!(numbers(&rows.range(2, 3).reversed().unwrap()), [4, 3, 2]);
    }

    #[test]
    fn what_was_promised_is_kept_or_nothing_comes() {
        let had = rows(Int32Array::from(vec![1]));
        let schema = |kind| Arc::new(Schema::new(vec![Field::new("c", kind, true)]));
        let wider = had.clone().promised(&schema(DataType::Int64)).unwrap();
        assert_eq!(*wider.schema().field(0).data_type(), DataType::Int64);
        assert!(had.promised(&Arc::new(Schema::empty())).is_none());
        assert!(rows(StringArray::from(vec!["x"])).promised(&schema(DataType::Int32)).is_none());
        let halves = |values| rows(Float64Array::from(values)).promised(&schema(DataType::Int16));
        assert!(halves(vec![Some(2.0), None]).is_some());
        assert!(halves(vec![Some(2.5)]).is_none(), "it would be another value");
    }
}
