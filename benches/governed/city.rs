//! The city's side of the comparison: an invented city in a hub, pushed by those who would, and the 25 questions of an
//! analyst for epidemiology, which are written for it.

use std::{collections::BTreeMap, path::Path, time::Duration};

use chrono::NaiveDate;
use gridhub::{
    demo::city,
    hub::{Hub, Opening},
};

use crate::{Question, data, protected::Exact};

/// Who asks.
pub const CALLER: &str = "health-analyst";

/// Why.
pub const PURPOSE: &str = "epidemiology";

/// The agencies' uploaders.
const UPLOADERS: [(&str, &str); 6] = [
    ("platform", "platform-uploader"),
    ("community", "community-uploader"),
    ("hospital", "hospital-uploader"),
    ("cdc", "cdc-uploader"),
    ("pharmacy", "pharmacy-uploader"),
    ("health_bureau", "health-uploader"),
];

/// A hub with the repository's contracts and policies.
pub fn opening(folder: &Path) -> Opening {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut opening =
        Opening::new(folder.join("data"), repository.join("schemas"), repository.join("policies"), folder.join("keys"));
    // A large city is slow, and no fault.
    opening.query_limits.deadline = Duration::from_secs(3_600);
    opening
}

/// Invents the city of the questions, whose last day they name, and pushes all that is told of it. Returns the rows
/// now in each dataset.
pub async fn push(hub: &Hub, data_folder: &Path, people: usize, days: usize) -> BTreeMap<String, u64> {
    let last_day = NaiveDate::from_ymd_opt(2026, 1, 18).expect("a day");
    let city = city::invent(people, days, 1, last_day);
    let mut credentials = BTreeMap::new();
    for (agency, caller) in UPLOADERS {
        credentials.insert(agency, data::credential(hub, data_folder, caller).await);
    }
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let files = city.files.iter().map(|file| (file.dataset, &file.rows));
    // Grids are checked against the divisions, so these come first.
    for (dataset, batch) in [("platform.divisions", &city.divisions)].into_iter().chain(files) {
        let agency = dataset.split('.').next().unwrap_or_default();
        let receipt = data::push(hub, &credentials[agency], dataset, batch).await;
        *rows.entry(dataset.to_owned()).or_default() += receipt.rows_accepted;
    }
    rows
}

/// The questions, as they are put to the hub and to the engine alone. `index_case` is the stored pseudonym of the case
/// whose chain is followed, in hexadecimal.
///
/// Both sides get the same text, except where the ungoverned side holds pseudonyms in bytes and not in digits (9, 18,
/// 25). Changed for both sides are those whose answer would hang on what the analyst may not see or on chance: 4 (a
/// second sort key, or ties at the limit decide), 14 (born before 1966, since the analyst sees years), 19 (the analyst
/// sees the community of a case), and 24 (codes without padding). 13 and 16 filter and group by sealed fields and
/// are protected, timed against the plain ones and compared as far as noise lets them.
pub fn questions(index_case: &str) -> Vec<Question> {
    let index_case = format!("FROM cases WHERE source_case_id = X'{index_case}')");
    let question = |block: &str| {
        let (name, sql) = block.split_once('\n').expect("a title and a question");
        let plain = sql
            .replace("substr(r.household_id,1,15) AS grid", "r.household_id AS grid")
            .replace(" OR id_no=''", "")
            .replace(" OR buyer_id_no=''", "")
            .replace(
                "min(source_case_id) AS case_id FROM cases)",
                &format!("min(source_case_id) AS case_id {index_case}"),
            );
        let protected = name.ends_with("protected").then(|| Exact {
            sql: plain.trim().replacen(" FROM ", ", count(DISTINCT id_no) AS people FROM ", 1),
            // A count of few people, and beside it a mean of temperatures or another count.
            within: if name.contains("mean") { &[0.5, 0.1] } else { &[0.5, 0.5] },
            complete: true,
        });
        Question {
            name: name.to_owned(),
            governed: sql.trim().to_owned(),
            plain: plain.trim().to_owned(),
            ordered: false,
            protected,
        }
    };
    include_str!("questions.sql").split("-- ").skip(1).map(question).collect()
}
