//! What a hub's policies say about releases, beside who may see what: `disclosure.json` of the policy folder.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use crate::error::{Error, Result};

/// Settings of the disclosure gate, for all callers and datasets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many new cells may be released of one sealed field, over all recipients, for each of its subjects.
    /// Reconstruction of a secret needs about as many as there are subjects (Dinur and Nissim 2003).
    pub cells_per_subject: f64,
    /// How many may be released however few subjects there are.
    pub cells_at_least: u64,
    /// Whether replies to protected questions are held back to the next edge of 64, 128, 256, … milliseconds.
    pub pad_replies: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cells_per_subject: 0.05, cells_at_least: 20, pad_replies: false }
    }
}

impl Settings {
    /// Reads the text of `file`. What it leaves out is as by default.
    ///
    /// # Errors
    /// [`Error::Setup`] with the line of what cannot be read, is not a setting, or is out of range.
    pub fn read(file: &Path, text: &str) -> Result<Self> {
        let settings: Self = serde_json::from_str(text).map_err(|fault| {
            let why = match fault.classify() {
                Category::Data => {
                    "what stands here is no setting; there are `cells_per_subject` (a number from 0 to 1), \
                     `cells_at_least` (a whole number) and `pad_replies` (true or false), each at most once"
                }
                Category::Io | Category::Syntax | Category::Eof => "cannot be read as JSON",
            };
            Error::setup(file, Some(fault.line()), why)
        })?;
        // More cells than there are subjects would be no limit at all.
        if !(0.0..=1.0).contains(&settings.cells_per_subject) {
            return Err(Error::setup(file, line_of(text, "cells_per_subject"), "`cells_per_subject` is from 0 to 1"));
        }
        Ok(settings)
    }
}

/// The line in which a member is set.
fn line_of(text: &str, member: &str) -> Option<usize> {
    let at = text.find(&format!("\"{member}\""))?;
    Some(1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings> {
        Settings::read(Path::new("disclosure.json"), text)
    }

    #[test]
    fn what_is_left_out_is_as_by_default() {
        assert_eq!(read("{}").unwrap(), Settings::default());
        let some = read("{\"cells_at_least\": 7}").unwrap();
        assert_eq!(some, Settings { cells_at_least: 7, ..Settings::default() });
        let all = read("{\"pad_replies\": true, \"cells_per_subject\": 1, \"cells_at_least\": 0}").unwrap();
        assert_eq!(all, Settings { cells_per_subject: 1.0, cells_at_least: 0, pad_replies: true });
    }

    #[test]
    fn faults_are_named_by_their_line() {
        for (line, text) in [
            (3, "{\n\"cells_at_least\": 7,\n\"cell_per_subject\": 0.1\n}"),
            (2, "{\n\"cells_at_least\": -7\n}"),
            (2, "{\n\"cells_at_least\": 7.5\n}"),
            (2, "{\n\"pad_replies\": \"yes\"\n}"),
            (2, "{\n\"cells_per_subject\": null\n}"),
            (3, "{\n\"cells_at_least\": 7,\n\"cells_at_least\": 8\n}"),
            (1, "0.05"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.starts_with(&format!("disclosure.json:{line}: what stands here is no setting")), "{said}");
        }
        for (line, text) in [
            (3, "{\n\"cells_at_least\": 7\n\"pad_replies\": true\n}"),
            (2, "{\n\"cells_per_subject\": NaN\n}"),
            (2, "{\n\"cells_at_least\": 7,"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert_eq!(said, format!("disclosure.json:{line}: cannot be read as JSON"));
        }
    }

    #[test]
    fn a_share_is_from_0_to_1() {
        for share in ["1.01", "-0.05", "1e300"] {
            let said = read(&format!("{{\n\n\"cells_per_subject\": {share}\n}}")).unwrap_err().to_string();
            assert_eq!(said, "disclosure.json:3: `cells_per_subject` is from 0 to 1");
        }
        for share in ["0", "0.0", "1"] {
            assert!(read(&format!("{{\"cells_per_subject\": {share}}}")).is_ok(), "{share}");
        }
    }
}
