//! `gridhub erase`. Identifiers come from a file or the terminal, and never from arguments, which every user of
//! the machine can read.

use std::{
    io::{BufRead, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use zeroize::Zeroizing;

use super::{Hub, print};
use crate::{
    client::TypedIdentifier,
    error::{Error, Result},
};

/// Erase people from all datasets, for good.
#[derive(Args)]
pub struct Erase {
    /// Identifiers, one a line, also as KIND,IDENTIFIER; else they are asked for.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What lines without a kind hold: cn_resident_id, cn_mobile, uscc, or opaque:DOMAIN.
    #[arg(long, default_value = "cn_resident_id", value_name = "KIND")]
    kind: String,
    /// The law or the file it is done by; goes into the log, so it must name nobody.
    #[arg(long, default_value = "", value_name = "TEXT")]
    basis: String,
    /// Why.
    #[arg(long, default_value = "audit", value_name = "P")]
    purpose: String,
    /// Do not ask again.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    hub: Hub,
}

impl Erase {
    /// Reads identifiers, asks again, erases, and prints the certificate.
    pub async fn run(self) -> Result<()> {
        let client = self.hub.client()?;
        let lines = match &self.file {
            Some(file) => read(file)?,
            None => prompt(&self.kind)?,
        };
        let identifiers: Vec<_> = lines.iter().filter_map(|line| identifier(line, &self.kind)).collect();
        if identifiers.is_empty() {
            return Err(Error::Usage("no identifier was given; nothing was erased".into()));
        }
        if !self.yes {
            confirm(identifiers.len())?;
        }
        let certificate = client.erase(&identifiers, &self.basis, &self.purpose).await?;
        print(format!("{certificate}\n").as_bytes())?;
        let rows: u64 =
            certificate["datasets"].as_object().into_iter().flatten().filter_map(|(_, rows)| rows.as_u64()).sum();
        eprintln!("{rows} rows erased, log entry {}", certificate["log_index"]);
        match certificate["verified"].as_bool() {
            Some(true) => Ok(()),
            _ => Err(Error::Remote(
                "the search found something left of them; the certificate names the files, tell the operator".into(),
            )),
        }
    }
}

/// The lines of a file; errors name the file and nothing in it.
fn read(file: &Path) -> Result<Vec<Zeroizing<String>>> {
    let fault = |why: std::io::Error| Error::Usage(format!("cannot read `{}`: {why}", file.display()));
    let text = Zeroizing::new(std::fs::read_to_string(file).map_err(fault)?);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text.as_str());
    Ok(text.lines().map(|line| Zeroizing::new(line.to_owned())).collect())
}

/// The lines somebody types, up to an empty one.
fn prompt(kind: &str) -> Result<Vec<Zeroizing<String>>> {
    eprintln!("identifiers ({kind}), one a line; an empty line ends:");
    let mut lines = Vec::new();
    loop {
        let line = typed()?;
        if line.trim().is_empty() {
            return Ok(lines);
        }
        lines.push(line);
    }
}

fn confirm(count: usize) -> Result<()> {
    eprint!(
        "all rows that name one of {count} identifiers are erased for good, whosever they are; type `erase` to go on: "
    );
    let _ = std::io::stderr().flush();
    match typed()?.trim() {
        "erase" => Ok(()),
        _ => Err(Error::Usage("not confirmed; nothing was erased (--yes asks nothing)".into())),
    }
}

/// A line from standard input; empty at its end.
fn typed() -> Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|_| Error::Usage("what was typed is no text; nothing was erased".into()))?;
    Ok(line)
}

/// A line as an identifier; nothing where it is empty. A kind may stand before a comma.
fn identifier<'a>(line: &'a str, usual: &'a str) -> Option<TypedIdentifier<'a>> {
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    Some(match line.split_once(',') {
        Some((kind, value)) => TypedIdentifier { kind: kind.trim(), value: value.trim() },
        None => TypedIdentifier { kind: usual, value: line },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_may_name_their_kind() {
        let read = |line| identifier(line, "cn_resident_id").map(|read| (read.kind, read.value));
        assert_eq!(read(" 42019119500110001X\r"), Some(("cn_resident_id", "42019119500110001X")));
        assert_eq!(read("cn_mobile, 14100000000"), Some(("cn_mobile", "14100000000")));
        assert_eq!(read("opaque:household,H,1"), Some(("opaque:household", "H,1")));
        assert_eq!(read("  "), None);
    }
}
