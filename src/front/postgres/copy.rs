//! `COPY … TO STDOUT`: an answer as a file, in Postgres's text, CSV or binary form. What goes the other way is refused.

use std::{fmt::Debug, pin::pin};

use arrow::array::{Array, RecordBatch};
use bytes::{BufMut, BytesMut};
use datafusion::sql::sqlparser::tokenizer::Token;
use futures::{Sink, SinkExt};
use pgwire::{
    error::{PgWireError, PgWireResult},
    messages::{
        PgWireBackendMessage,
        copy::{CopyData, CopyDone, CopyOutResponse},
    },
};

use super::{
    cancel::Running,
    encode::{BINARY, Rows, TEXT, put_binary, write_text},
    error::error,
    statements::{Words, fault, fault_with_hint},
};
use crate::error::{Error, Result};

/// What a file in binary form begins with: a signature, no flags, nothing more before the rows.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// `COPY`: an answer as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    /// The query.
    pub(super) sql: String,
    form: Form,
}

/// The form of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Text(Text),
    Csv(Csv),
    Binary,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    delimiter: u8,
    null: String,
    header: Header,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Csv {
    delimiter: u8,
    null: String,
    header: Header,
    quote: u8,
    escape: u8,
    quoted: Quoted,
}

/// Whether the names of the columns are the first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    Without,
    With,
}

/// The columns whose values are always quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Quoted {
    All,
    These(Vec<String>),
}

/// The options, as far as they are named.
#[derive(Default)]
struct Options {
    format: Option<String>,
    delimiter: Option<String>,
    null: Option<String>,
    header: Option<Header>,
    quote: Option<String>,
    escape: Option<String>,
    quoted: Option<Quoted>,
}

impl Copy {
    /// Reads what comes after `COPY`.
    ///
    /// # Errors
    /// 42601 where it cannot be read, 42501 where it is not to the client, 22023 and 0A000 for options that do not go
    /// together or are unknown.
    pub(super) fn read(words: &mut Words<'_>) -> PgWireResult<Self> {
        let wrong = || fault("42601", "write COPY (SELECT …) TO STDOUT [WITH (FORMAT csv, HEADER)]");
        let sql = match words.parenthesis() {
            Some(query) => query.to_owned(),
            None => {
                let table = words.qualified().ok_or_else(wrong)?;
                let columns = words.parenthesis().unwrap_or("*");
                format!("SELECT {columns} FROM {table}")
            }
        };
        if words.word("FROM") {
            return Err(fault_with_hint(
                "42501",
                "the hub takes no rows at this door",
                "send files with `gridhub push DATASET FILE`, or PUT them over HTTP",
            ));
        }
        if !words.word("TO") {
            return Err(wrong());
        }
        if !words.word("STDOUT") {
            return Err(fault_with_hint(
                "42501",
                "the hub writes no files and runs no programs",
                "write COPY … TO STDOUT, or \\copy … TO 'file' in psql",
            ));
        }
        words.word("WITH");
        let mut options = Options::default();
        match words.sign(&Token::LParen) {
            true => options.read_list(words)?,
            false => options.read_words(words)?,
        }
        match words.is_done() {
            true => Ok(Self { sql, form: options.form()? }),
            false => Err(wrong()),
        }
    }

    /// Sends the rows as a file, unless the statement is ended meanwhile. Its end is the caller's to say.
    ///
    /// # Errors
    /// What ends the statement or breaks the connection, and a value that has no form in Postgres.
    pub(super) async fn send<C>(&self, client: &mut C, rows: &Rows, running: &Running) -> PgWireResult<()>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let format = if self.form == Form::Binary { BINARY } else { TEXT };
        let columns = rows.schema().fields().len();
        let count = i16::try_from(columns).map_err(|_| fault("54000", "too many columns"))?;
        self.check_quoted(rows)?;
        // The whole and each of its columns have one form.
        let whole = i8::try_from(format).unwrap_or_default();
        let begin = CopyOutResponse::new(whole, count, vec![format; columns]);
        client.feed(PgWireBackendMessage::CopyOutResponse(begin)).await?;
        let mut out = BytesMut::new();
        self.begin(rows, &mut out);
        let mut ended = pin!(running.ended());
        for (batch, row) in rows.iter() {
            self.row(batch, row, &mut out).map_err(|fault| error(&fault))?;
            let piece = PgWireBackendMessage::CopyData(CopyData::new(out.split().freeze()));
            tokio::select! {
                biased;
                why = &mut ended => return Err(error(&why)),
                fed = client.feed(piece) => fed?,
            }
        }
        if self.form == Form::Binary {
            out.put_i16(-1);
        }
        if !out.is_empty() {
            client.feed(PgWireBackendMessage::CopyData(CopyData::new(out.freeze()))).await?;
        }
        client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
        Ok(())
    }

    /// Columns that are to be quoted are columns of the answer.
    fn check_quoted(&self, rows: &Rows) -> PgWireResult<()> {
        let Form::Csv(Csv { quoted: Quoted::These(columns), .. }) = &self.form else { return Ok(()) };
        match columns.iter().find(|column| rows.schema().index_of(column).is_err()) {
            Some(column) => Err(fault("42703", format!("column \"{column}\" does not exist"))),
            None => Ok(()),
        }
    }

    /// What stands before the rows. Clients read the binary form's beginning and its first row as one piece.
    fn begin(&self, rows: &Rows, out: &mut BytesMut) {
        let names = || rows.schema().fields().iter().map(|field| field.name().as_bytes());
        match &self.form {
            Form::Binary => out.put_slice(SIGNATURE),
            Form::Text(text) if text.header == Header::With => {
                for (at, name) in names().enumerate() {
                    text.delimit(at, out);
                    text.write(name, out);
                }
                out.put_u8(b'\n');
            }
            Form::Csv(csv) if csv.header == Header::With => {
                let alone = names().count() == 1;
                for (at, name) in names().enumerate() {
                    csv.delimit(at, out);
                    match csv.needs_quotes(name, alone) {
                        true => csv.write_quoted(name, out),
                        false => out.put_slice(name),
                    }
                }
                out.put_u8(b'\n');
            }
            Form::Text(_) | Form::Csv(_) => {}
        }
    }

    /// One row, with the end of its line.
    fn row(&self, batch: &RecordBatch, row: usize, out: &mut BytesMut) -> Result<()> {
        let schema = batch.schema_ref();
        if self.form == Form::Binary {
            out.put_i16(i16::try_from(batch.num_columns()).map_err(Error::internal)?);
        }
        let alone = batch.num_columns() == 1;
        let mut value = BytesMut::new();
        for (at, column) in batch.columns().iter().enumerate() {
            match &self.form {
                Form::Binary => put_binary(schema.field(at), column, row, out)?,
                Form::Text(text) => {
                    text.delimit(at, out);
                    if column.is_null(row) {
                        out.put_slice(text.null.as_bytes());
                        continue;
                    }
                    value.clear();
                    write_text(column, row, &mut value)?;
                    text.write(&value, out);
                }
                Form::Csv(csv) => {
                    csv.delimit(at, out);
                    if column.is_null(row) {
                        out.put_slice(csv.null.as_bytes());
                        continue;
                    }
                    value.clear();
                    write_text(column, row, &mut value)?;
                    match csv.quoted.holds(schema.field(at).name()) || csv.needs_quotes(&value, alone) {
                        true => csv.write_quoted(&value, out),
                        false => out.put_slice(&value),
                    }
                }
            }
        }
        if self.form != Form::Binary {
            out.put_u8(b'\n');
        }
        Ok(())
    }
}

impl Text {
    fn delimit(&self, column: usize, out: &mut BytesMut) {
        if column > 0 {
            out.put_u8(self.delimiter);
        }
    }

    fn write(&self, value: &[u8], out: &mut BytesMut) {
        for byte in value {
            let escaped = match byte {
                8 => b'b',
                9 => b't',
                10 => b'n',
                11 => b'v',
                12 => b'f',
                13 => b'r',
                b'\\' => b'\\',
                byte if *byte == self.delimiter => *byte,
                byte => {
                    out.put_u8(*byte);
                    continue;
                }
            };
            out.put_slice(&[b'\\', escaped]);
        }
    }
}

impl Csv {
    fn delimit(&self, column: usize, out: &mut BytesMut) {
        if column > 0 {
            out.put_u8(self.delimiter);
        }
    }

    /// Whether a value would be read as something else. `alone` in its line, `\.` would be the end of the file.
    fn needs_quotes(&self, value: &[u8], alone: bool) -> bool {
        let special = |byte: &u8| [self.delimiter, self.quote, b'\n', b'\r'].contains(byte);
        value == self.null.as_bytes() || (alone && value == b"\\.") || value.iter().any(special)
    }

    fn write_quoted(&self, value: &[u8], out: &mut BytesMut) {
        out.put_u8(self.quote);
        for byte in value {
            if [self.quote, self.escape].contains(byte) {
                out.put_u8(self.escape);
            }
            out.put_u8(*byte);
        }
        out.put_u8(self.quote);
    }
}

impl Quoted {
    fn holds(&self, column: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(columns) => columns.iter().any(|name| name == column),
        }
    }
}

impl Options {
    /// Options in parentheses, of which the first is passed.
    fn read_list(&mut self, words: &mut Words<'_>) -> PgWireResult<()> {
        let wrong = |name: &str| fault("42601", format!("the value of COPY option \"{name}\" cannot be read"));
        loop {
            let name = words.name().ok_or_else(|| fault("42601", "an option of COPY has no name"))?;
            let mut value = || words.text().or_else(|| words.name());
            match name.as_str() {
                "format" => self.format = Some(value().ok_or_else(|| wrong(&name))?.to_lowercase()),
                "delimiter" => self.delimiter = Some(words.text().ok_or_else(|| wrong(&name))?),
                "null" => self.null = Some(words.text().ok_or_else(|| wrong(&name))?),
                "quote" => self.quote = Some(words.text().ok_or_else(|| wrong(&name))?),
                "escape" => self.escape = Some(words.text().ok_or_else(|| wrong(&name))?),
                "header" => self.header = Some(header(words)?),
                "force_quote" => self.quoted = Some(quoted(words).ok_or_else(|| wrong(&name))?),
                "encoding" => encoding(&value().ok_or_else(|| wrong(&name))?)?,
                _ => return Err(fault("42601", format!("option \"{name}\" not recognized"))),
            }
            if words.sign(&Token::RParen) {
                return Ok(());
            }
            if !words.sign(&Token::Comma) {
                return Err(wrong(&name));
            }
        }
    }

    /// Options as Postgres had them before version 9.
    fn read_words(&mut self, words: &mut Words<'_>) -> PgWireResult<()> {
        let wrong = || fault("42601", "an option of COPY cannot be read; write WITH (FORMAT csv, HEADER)");
        let text = |words: &mut Words<'_>| {
            words.word("AS");
            words.text().ok_or_else(wrong)
        };
        while !words.is_done() {
            if words.word("BINARY") {
                self.format = Some("binary".into());
            } else if words.word("CSV") {
                self.format = Some("csv".into());
            } else if words.word("HEADER") {
                self.header = Some(Header::With);
            } else if words.word("DELIMITER") || words.word("DELIMITERS") {
                self.delimiter = Some(text(words)?);
            } else if words.word("NULL") {
                self.null = Some(text(words)?);
            } else if words.word("QUOTE") {
                self.quote = Some(text(words)?);
            } else if words.word("ESCAPE") {
                self.escape = Some(text(words)?);
            } else if words.word("ENCODING") {
                encoding(&words.text().ok_or_else(wrong)?)?;
            } else if words.words(&["FORCE", "QUOTE"]) {
                self.quoted = Some(quoted(words).ok_or_else(wrong)?);
            } else {
                return Err(wrong());
            }
        }
        Ok(())
    }

    fn form(self) -> PgWireResult<Form> {
        let format = self.format.as_deref().unwrap_or("text");
        if format != "csv" {
            for (name, given) in [
                ("QUOTE", self.quote.is_some()),
                ("ESCAPE", self.escape.is_some()),
                ("FORCE_QUOTE", self.quoted.is_some()),
            ] {
                if given {
                    return Err(fault("0A000", format!("COPY {name} requires CSV mode")));
                }
            }
        }
        let delimiter = |usual| self.delimiter.as_deref().map_or(Ok(usual), |given| sign("delimiter", given));
        let header = self.header.unwrap_or(Header::Without);
        match format {
            "binary" => {
                if self.delimiter.is_some() || self.null.is_some() || header == Header::With {
                    return Err(fault("42601", "COPY in binary has no DELIMITER, NULL or HEADER"));
                }
                Ok(Form::Binary)
            }
            "text" => {
                let delimiter = delimiter(b'\t')?;
                // They stand for themselves in escapes.
                if delimiter == b'.'
                    || delimiter == b'\\'
                    || delimiter.is_ascii_lowercase()
                    || delimiter.is_ascii_digit()
                {
                    return Err(fault("22023", "COPY delimiter cannot be that sign in text"));
                }
                let null = null(self.null, "\\N", delimiter)?;
                Ok(Form::Text(Text { delimiter, null, header }))
            }
            "csv" => {
                let delimiter = delimiter(b',')?;
                let quote = self.quote.as_deref().map_or(Ok(b'"'), |given| sign("quote", given))?;
                let escape = self.escape.as_deref().map_or(Ok(quote), |given| sign("escape", given))?;
                if delimiter == quote {
                    return Err(fault("22023", "COPY delimiter and quote must be different"));
                }
                let null = null(self.null, "", delimiter)?;
                if null.as_bytes().contains(&quote) {
                    return Err(fault("0A000", "CSV quote character must not appear in the NULL specification"));
                }
                let quoted = self.quoted.unwrap_or(Quoted::These(Vec::new()));
                Ok(Form::Csv(Csv { delimiter, null, header, quote, escape, quoted }))
            }
            _ => Err(fault("22023", "COPY format is text, csv or binary")),
        }
    }
}

/// A sign of one byte that ends no line.
fn sign(name: &str, given: &str) -> PgWireResult<u8> {
    match given.as_bytes() {
        [byte] if !matches!(byte, b'\n' | b'\r') => Ok(*byte),
        _ => Err(fault("0A000", format!("COPY {name} must be a single one-byte character"))),
    }
}

fn null(given: Option<String>, usual: &str, delimiter: u8) -> PgWireResult<String> {
    let null = given.unwrap_or_else(|| usual.to_owned());
    if null.contains(['\n', '\r']) {
        return Err(fault("22023", "COPY null representation cannot use newline or carriage return"));
    }
    match null.as_bytes().contains(&delimiter) {
        true => Err(fault("0A000", "COPY delimiter must not appear in the NULL specification")),
        false => Ok(null),
    }
}

fn encoding(name: &str) -> PgWireResult<()> {
    match name.to_ascii_lowercase().replace('-', "").as_str() {
        "utf8" | "unicode" => Ok(()),
        _ => Err(fault("22023", "the hub speaks UTF8 only")),
    }
}

fn header(words: &mut Words<'_>) -> PgWireResult<Header> {
    let given = words.text().or_else(|| words.name()).or_else(|| words.number().map(|number| number.to_string()));
    match given.as_deref().map(str::to_lowercase).as_deref() {
        None | Some("true" | "on" | "1") => Ok(Header::With),
        Some("false" | "off" | "0") => Ok(Header::Without),
        Some("match") => Err(fault("22023", "cannot use \"match\" with HEADER in COPY TO")),
        Some(_) => Err(fault("42601", "header requires a Boolean value or \"match\"")),
    }
}

fn quoted(words: &mut Words<'_>) -> Option<Quoted> {
    if words.sign(&Token::Mul) {
        return Some(Quoted::All);
    }
    let listed = words.sign(&Token::LParen);
    let mut columns = vec![words.name()?];
    while words.sign(&Token::Comma) {
        columns.push(words.name()?);
    }
    (!listed || words.sign(&Token::RParen)).then_some(Quoted::These(columns))
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
mod tests {
    use std::sync::{Arc, Mutex};

    use arrow::{
        array::{Int32Array, StringArray},
        datatypes::{DataType, Field, Schema},
    };
    use futures::{executor::block_on, sink};

    use pgwire::messages::ProtocolVersion;

    use super::*;
    use crate::front::postgres::{
        cancel::Registry,
        statements::{Kind, split},
    };

    fn read(sql: &str) -> PgWireResult<Copy> {
        match split(sql)?.remove(0)?.kind {
            Kind::Copy(copy) => Ok(copy),
            kind => Err(fault("none", format!("{kind:?}"))),
        }
    }

    fn code(sql: &str) -> String {
        match read(sql) {
            Err(PgWireError::UserError(info)) => info.code,
            _ => "none".into(),
        }
    }

    /// The pieces that a client gets.
    fn sent(sql: &str) -> Vec<Vec<u8>> {
        let fields = vec![Field::new("n", DataType::Int32, true), Field::new("words", DataType::Utf8, true)];
        let schema = Arc::new(Schema::new(fields));
        let numbers = Arc::new(Int32Array::from(vec![Some(1), None]));
        let words = Arc::new(StringArray::from(vec!["a,b\t\"c\"\\", ""]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![numbers, words]).unwrap();
        let rows = Rows::new(&schema, &[batch]).unwrap();
        pieces(sql, &rows)
    }

    fn pieces(sql: &str, rows: &Rows) -> Vec<Vec<u8>> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&kept);
        let mut client = Box::pin(sink::unfold((), move |(), message: PgWireBackendMessage| {
            if let PgWireBackendMessage::CopyData(data) = message {
                into.lock().unwrap().push(data.data.to_vec());
            }
            async { Ok::<_, std::io::Error>(()) }
        }));
        let entry = Registry::new().unwrap().enter(ProtocolVersion::PROTOCOL3_0).unwrap();
        block_on(read(sql).unwrap().send(&mut client, rows, &entry.run(None))).unwrap();
        let kept = kept.lock().unwrap();
        kept.clone()
    }

    fn text(sql: &str) -> String {
        String::from_utf8(sent(sql).concat()).unwrap()
    }

    #[test]
    fn queries_and_tables_are_copied() {
        assert_eq!(read("COPY (SELECT ')' FROM t) TO STDOUT").unwrap().sql, "SELECT ')' FROM t");
        assert_eq!(read("copy a.\"B c\" to stdout;").unwrap().sql, "SELECT * FROM a.\"B c\"");
        assert_eq!(read("COPY t (x, \"Y\") TO STDOUT").unwrap().sql, "SELECT x, \"Y\" FROM t");
    }

    #[test]
    fn the_other_way_is_refused() {
        for sql in ["COPY t FROM STDIN", "COPY t (a) FROM 'f'", "COPY t TO 'f'", "COPY (SELECT 1) TO PROGRAM 'cat'"] {
            assert_eq!(code(sql), "42501", "{sql}");
        }
    }

    #[test]
    fn options_old_and_new_are_the_same() {
        for (old, new) in [
            ("CSV HEADER", "WITH (FORMAT csv, HEADER)"),
            ("CSV HEADER", "(format 'CSV', header true)"),
            ("WITH BINARY", "(FORMAT binary)"),
            ("DELIMITER AS '|' NULL ''", "(DELIMITER '|', NULL '')"),
            ("CSV QUOTE '''' FORCE QUOTE a, b", "(FORMAT csv, QUOTE '''', FORCE_QUOTE (a, b))"),
            ("CSV FORCE QUOTE *", "(FORMAT csv, FORCE_QUOTE *, HEADER off, ENCODING 'utf-8')"),
        ] {
            let form = |options| read(&format!("COPY t TO STDOUT {options}")).unwrap();
            assert_eq!(form(old), form(new), "{old}");
        }
        for (options, wanted) in [
            ("(FORMAT xml)", "22023"),
            ("(HEADER match)", "22023"),
            ("(QUOTE '''')", "0A000"),
            ("(DELIMITER '||')", "0A000"),
            ("(FORMAT binary, HEADER)", "42601"),
            ("(SPEED 7)", "42601"),
            ("(FORMAT csv", "42601"),
            ("CSV x", "42601"),
            ("(DELIMITER 'a')", "22023"),
            ("(ENCODING 'latin1')", "22023"),
            ("(NULL 'a,b', DELIMITER ',')", "0A000"),
            ("(FORMAT csv, NULL 'a,b')", "0A000"),
            ("(FORMAT csv, NULL '\"')", "0A000"),
        ] {
            assert_eq!(code(&format!("COPY t TO STDOUT {options}")), wanted, "{options}");
        }
    }

    #[test]
    fn text_escapes_what_would_end_a_value() {
        assert_eq!(text("COPY t TO STDOUT"), "1\ta,b\\t\"c\"\\\\\n\\N\t\n");
        assert_eq!(text("COPY t TO STDOUT (DELIMITER ',', NULL '-', HEADER)").lines().next().unwrap(), "n,words");
        assert_eq!(text("COPY t TO STDOUT (DELIMITER ',')"), "1,a\\,b\\t\"c\"\\\\\n\\N,\n");
    }

    #[test]
    fn csv_quotes_what_would_be_read_as_something_else() {
        assert_eq!(text("COPY t TO STDOUT CSV HEADER"), "n,words\n1,\"a,b\t\"\"c\"\"\\\"\n,\"\"\n");
        assert_eq!(text("COPY t TO STDOUT (FORMAT csv, NULL '1')"), "\"1\",\"a,b\t\"\"c\"\"\\\"\n1,\n");
        assert_eq!(
            text("COPY t TO STDOUT (FORMAT csv, ESCAPE '\\', FORCE_QUOTE (n))"),
            "\"1\",\"a,b\t\\\"c\\\"\\\\\"\n,\"\"\n"
        );
    }

    #[test]
    fn columns_to_be_quoted_exist() {
        let rows = Rows::texts(&["a"], &[]).unwrap();
        let checked = |sql| read(sql).unwrap().check_quoted(&rows);
        assert!(checked("COPY t TO STDOUT (FORMAT csv, FORCE_QUOTE (a))").is_ok());
        let Err(PgWireError::UserError(info)) = checked("COPY t TO STDOUT (FORMAT csv, FORCE_QUOTE (a, b))") else {
            panic!("it was taken")
        };
        assert_eq!(info.code, "42703");
    }

    #[test]
    fn binary_begins_in_one_piece_with_its_first_row() {
        let pieces = sent("COPY t TO STDOUT (FORMAT binary)");
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0][..11], *b"PGCOPY\n\xff\r\n\0");
        assert_eq!(pieces[0][11..19], [0; 8]);
        assert_eq!(pieces[0][19..33], [0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 8]);
        assert_eq!(pieces[1], [0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(pieces[2], [0xff, 0xff]);
        let none = Rows::texts(&["a"], &[]).unwrap();
        let empty = super::tests::pieces("COPY t TO STDOUT (FORMAT binary)", &none);
        assert_eq!(empty, [[SIGNATURE, &[0xff, 0xff]].concat()]);
    }
}
