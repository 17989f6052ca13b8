//! The settings that a connection has: what they are called, what they take, and how their values are written. Those
//! that clients of PostgreSQL set by habit are kept and shown, and change nothing here.

use std::{collections::BTreeMap, time::Duration};

use super::error::{SETTING_VALUE, UNKNOWN_SETTING};
use crate::{
    disclose::Small,
    error::{Error, Result},
};

/// Why a caller asks.
pub(super) const PURPOSE: &str = "purpose";
/// How long a statement may take.
pub(super) const STATEMENT_TIMEOUT: &str = "statement_timeout";
/// Whether protected numbers come with the ends of their intervals.
pub(super) const INTERVAL: &str = "gridhub.interval";
/// What becomes of protected cells that are too small.
pub(super) const SMALL_CELLS: &str = "gridhub.small_cells";
/// From which level on the client is told.
pub(super) const MESSAGES: &str = "client_min_messages";
/// Who asks.
pub(super) const SESSION_AUTHORIZATION: &str = "session_authorization";

/// Settings whose changes clients are told of, as in PostgreSQL.
pub(super) const REPORTED: [&str; 14] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "search_path",
    "server_encoding",
    "server_version",
    SESSION_AUTHORIZATION,
    "standard_conforming_strings",
    "TimeZone",
];

/// A setting.
pub(super) struct Known {
    /// What it is called where it is shown.
    pub(super) name: &'static str,
    /// What it is where nobody set it.
    pub(super) default: &'static str,
    /// What it is for.
    pub(super) about: &'static str,
    takes: Takes,
}

/// What a setting takes.
enum Takes {
    /// Anything, which is kept and shown.
    Text,
    /// Anything, which changes nothing.
    Ignored,
    /// On or off.
    Switch,
    /// A time; milliseconds where no unit is written.
    Time,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Names of the one encoding.
    Utf8,
    /// Styles of dates that are written as ISO 8601 does.
    Dates,
    /// Nothing: it cannot be set.
    Nothing,
}

/// Levels of messages, from those that tell least on; `debug` and the last two are names of old.
const LEVELS: [&str; 13] = [
    "debug5", "debug4", "debug3", "debug2", "debug1", "debug", "info", "log", "notice", "warning", "error", "fatal",
    "panic",
];

/// Values of settings by name, where they differ from what is shown else.
pub(super) type Values = BTreeMap<&'static str, String>;

const VERSION: &str = concat!("16.4 (gridhub ", env!("CARGO_PKG_VERSION"), ")");

const fn known(name: &'static str, default: &'static str, takes: Takes, about: &'static str) -> Known {
    Known { name, default, about, takes }
}

static ALL: [Known; 53] = [
    known(PURPOSE, "", Takes::Text, "why this caller asks"),
    known(STATEMENT_TIMEOUT, "0", Takes::Time, "how long a statement may take; 0: as long as the hub allows"),
    known(INTERVAL, "off", Takes::Switch, "whether protected numbers come with the ends of their 95 % intervals"),
    known(
        SMALL_CELLS,
        "leave-out",
        Takes::OneOf(&["leave-out", "merge", "roll-up"]),
        "what becomes of protected cells of too few people",
    ),
    known("application_name", "", Takes::Text, "what the client calls itself"),
    known("array_nulls", "on", Takes::Ignored, "kept for clients"),
    known("backslash_quote", "safe_encoding", Takes::Ignored, "kept for clients"),
    known("block_size", "8192", Takes::Nothing, "kept for clients"),
    known("bytea_output", "hex", Takes::OneOf(&["hex"]), "how bytes are written"),
    known("check_function_bodies", "on", Takes::Ignored, "kept for clients"),
    known("client_encoding", "UTF8", Takes::Utf8, "how text is encoded"),
    known(MESSAGES, "notice", Takes::OneOf(&LEVELS), "from which level on the client is told"),
    known("cursor_tuple_fraction", "0.1", Takes::Ignored, "kept for clients"),
    known("DateStyle", "ISO, MDY", Takes::Dates, "how dates are written"),
    known("default_tablespace", "", Takes::Ignored, "kept for clients"),
    known("default_transaction_deferrable", "off", Takes::Ignored, "kept for clients"),
    known("default_transaction_isolation", "read committed", Takes::Ignored, "each answer is of one moment"),
    known("default_transaction_read_only", "on", Takes::Ignored, "nothing is written by SQL"),
    known("escape_string_warning", "on", Takes::Ignored, "kept for clients"),
    known("extra_float_digits", "1", Takes::Text, "numbers are always written in full"),
    known("geqo", "on", Takes::Ignored, "kept for clients"),
    known("idle_in_transaction_session_timeout", "0", Takes::Ignored, "kept for clients"),
    known("idle_session_timeout", "0", Takes::Ignored, "kept for clients"),
    known("in_hot_standby", "off", Takes::Nothing, "kept for clients"),
    known("integer_datetimes", "on", Takes::Nothing, "how times are encoded"),
    known("IntervalStyle", "postgres", Takes::OneOf(&["postgres"]), "how intervals are written"),
    known("is_superuser", "off", Takes::Nothing, "nobody is above the policies"),
    known("jit", "off", Takes::Text, "kept for clients"),
    known("lc_collate", "C", Takes::Nothing, "how text is ordered"),
    known("lc_ctype", "C.UTF-8", Takes::Nothing, "how letters are classed"),
    known("lc_messages", "C", Takes::Ignored, "kept for clients"),
    known("lc_monetary", "C", Takes::Ignored, "kept for clients"),
    known("lc_numeric", "C", Takes::Ignored, "kept for clients"),
    known("lc_time", "C", Takes::Ignored, "kept for clients"),
    known("lock_timeout", "0", Takes::Ignored, "nothing is ever locked"),
    known("max_identifier_length", "63", Takes::Nothing, "kept for clients"),
    known("max_index_keys", "32", Takes::Nothing, "kept for clients"),
    known("password_encryption", "scram-sha-256", Takes::Nothing, "kept for clients"),
    known("plan_cache_mode", "auto", Takes::Ignored, "kept for clients"),
    known("row_security", "on", Takes::Ignored, "policies always hold"),
    known("search_path", "\"$user\", public", Takes::Text, "bare names are found where they are unique"),
    known("server_encoding", "UTF8", Takes::Nothing, "how text is kept"),
    known("server_version", VERSION, Takes::Nothing, "whose SQL this resembles"),
    known("server_version_num", "160004", Takes::Nothing, "whose SQL this resembles, as a number"),
    known(SESSION_AUTHORIZATION, "", Takes::Nothing, "who asks"),
    known("standard_conforming_strings", "on", Takes::OneOf(&["on"]), "how text is quoted"),
    known("synchronous_commit", "on", Takes::Ignored, "kept for clients"),
    known("TimeZone", "UTC", Takes::Text, "the client's time zone; times are written with their offset"),
    known("transaction_deferrable", "off", Takes::Ignored, "kept for clients"),
    known("transaction_isolation", "read committed", Takes::Ignored, "each answer is of one moment"),
    known("transaction_read_only", "on", Takes::Ignored, "nothing is written by SQL"),
    known("work_mem", "4MB", Takes::Ignored, "kept for clients"),
    known("xmloption", "content", Takes::Ignored, "kept for clients"),
];

/// The setting of that name, in whatever case.
///
/// # Errors
/// A refusal where there is none.
pub(super) fn find(name: &str) -> Result<&'static Known> {
    ALL.iter().find(|known| known.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let name: String = name.chars().take(64).collect();
        Error::refused(
            UNKNOWN_SETTING,
            format!("unrecognized configuration parameter `{name}`"),
            "SHOW ALL lists the settings there are",
        )
    })
}

/// All settings, by name.
pub(super) fn all() -> impl Iterator<Item = &'static Known> {
    ALL.iter()
}

impl Known {
    /// A value as it is kept; none where it changes nothing.
    ///
    /// # Errors
    /// A refusal where the setting does not take it.
    pub(super) fn normal(&self, value: &str) -> Result<Option<String>> {
        let trimmed = value.trim();
        let taken = match &self.takes {
            Takes::Ignored => return Ok(None),
            // Kept for every connection and shown in one line.
            Takes::Text => Some(value.to_owned()).filter(|value| value.len() <= 1_024 && !value.contains('\0')),
            Takes::Switch => switch(trimmed).map(str::to_owned),
            Takes::Time => milliseconds(trimmed).map(time),
            Takes::OneOf(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(trimmed));
                // A switch that stays on is on in all the ways of writing it.
                word.copied().or_else(|| switch(trimmed).filter(|word| words.contains(word))).map(str::to_owned)
            }
            Takes::Utf8 => {
                // Clients write it as they like, also in quotes; PostgreSQL looks at letters and digits alone.
                let letters = trimmed.chars().filter(char::is_ascii_alphanumeric);
                let name: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
                matches!(name.as_str(), "utf8" | "unicode").then(|| self.default.to_owned())
            }
            Takes::Dates => trimmed
                .to_ascii_lowercase()
                .split(',')
                .all(|part| matches!(part.trim(), "iso" | "mdy" | "dmy" | "ymd" | "us" | "european"))
                .then(|| self.default.to_owned()),
            Takes::Nothing => None,
        };
        taken.map(Some).ok_or_else(|| {
            let name = self.name;
            let value: String = value.chars().take(64).collect();
            match &self.takes {
                Takes::Nothing => Error::refused(SETTING_VALUE, format!("`{name}` cannot be changed"), ""),
                _ => Error::refused(
                    SETTING_VALUE,
                    format!("`{name}` cannot be `{value}`"),
                    format!("it may be {}", self.choices()),
                ),
            }
        })
    }

    fn choices(&self) -> String {
        match &self.takes {
            Takes::Switch => "on or off".into(),
            Takes::Time => "a number of milliseconds, or one with a unit as in '5s' or '1min'".into(),
            Takes::OneOf(words) => words.join(", "),
            Takes::Utf8 => "UTF8".into(),
            Takes::Dates => "ISO".into(),
            Takes::Text | Takes::Ignored | Takes::Nothing => "a text of at most 1024 bytes".into(),
        }
    }
}

/// The time that a normal value stands for; none where there is no limit.
pub(super) fn limit(value: &str) -> Option<Duration> {
    milliseconds(value).filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis)
}

/// Whether notices are told from that level on.
pub(super) fn lets_notices_through(level: &str) -> bool {
    !matches!(level, "warning" | "error" | "fatal" | "panic")
}

/// What becomes of small cells, by its normal word.
pub(super) fn small_cells(word: &str) -> Small {
    match word {
        "merge" => Small::Merge,
        "roll-up" => Small::RollUp,
        _ => Small::LeaveOut,
    }
}

fn switch(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Some("on"),
        "off" | "false" | "no" | "0" | "f" | "n" => Some("off"),
        _ => None,
    }
}

/// Units of time with their lengths in milliseconds, longest first.
static UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let length = match unit.trim() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length)?,
    };
    // As far as PostgreSQL's settings go.
    number.checked_mul(length).filter(|milliseconds| i32::try_from(*milliseconds).is_ok())
}

fn time(milliseconds: u64) -> String {
    let unit = UNITS.iter().find(|(_, length)| milliseconds.is_multiple_of(*length)).filter(|_| milliseconds > 0);
    unit.map_or_else(|| "0".into(), |(name, length)| format!("{}{name}", milliseconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(name: &str, value: &str) -> Option<String> {
        find(name).unwrap().normal(value).ok().flatten()
    }

    #[test]
    fn values_are_kept_in_one_form() {
        for (value, kept) in
            [("0", "0"), ("250", "250ms"), ("5000", "5s"), ("90s", "90s"), ("1min", "1min"), ("60 s", "1min")]
        {
            assert_eq!(normal("statement_timeout", value).as_deref(), Some(kept), "{value}");
        }
        assert_eq!(limit("90s"), Some(Duration::from_secs(90)));
        assert_eq!(limit("0"), None);
        assert_eq!(normal("gridhub.interval", "TRUE").as_deref(), Some("on"));
        assert_eq!(normal("gridhub.small_cells", "Roll-Up").as_deref(), Some("roll-up"));
        assert_eq!(normal("datestyle", "iso, dmy").as_deref(), Some("ISO, MDY"));
        for encoding in ["utf-8", "'utf-8'", "UTF8", "UNICODE"] {
            assert_eq!(normal("client_encoding", encoding).as_deref(), Some("UTF8"), "{encoding}");
        }
        assert_eq!(normal("standard_conforming_strings", "true").as_deref(), Some("on"));
        assert_eq!(normal("transaction_isolation", "serializable"), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (name, value) in [
            ("statement_timeout", "soon"),
            ("statement_timeout", "-1"),
            ("statement_timeout", "99999999999"),
            ("gridhub.interval", "maybe"),
            ("gridhub.small_cells", "all"),
            ("client_encoding", "GBK"),
            ("client_min_messages", "loud"),
            ("DateStyle", "German"),
            ("standard_conforming_strings", "off"),
            ("bytea_output", "escape"),
            ("server_version", "17"),
            ("is_superuser", "on"),
        ] {
            assert!(find(name).unwrap().normal(value).is_err(), "{name} = {value}");
        }
        assert!(find("gridhub.exact").is_err());
    }

    #[test]
    fn notices_are_told_from_their_level_on() {
        assert_eq!(normal("client_min_messages", "WARNING").as_deref(), Some("warning"));
        let told = LEVELS.into_iter().filter(|level| lets_notices_through(level));
        assert_eq!(told.collect::<Vec<_>>(), LEVELS[..9]);
        assert!(lets_notices_through(find(MESSAGES).unwrap().default));
    }

    #[test]
    fn reported_settings_exist() {
        assert!(REPORTED.iter().all(|name| find(name).is_ok_and(|known| known.name == *name)));
    }
}
