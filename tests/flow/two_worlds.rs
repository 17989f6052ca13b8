//! Ghost rows: what a caller gets is the same to the byte whether values and rows outside its exposure are
//! there, changed or absent (invariants 3 and 4). Two hubs, one difference, the same questions.

use crate::worlds::{lines, owned, transcript, world};

const ANALYST: [&str; 11] = [
    "SELECT confirmed_date, grid_code, count(*) FROM cases GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT sex, birth_date, onset_date FROM cases ORDER BY 1, 2, 3",
    "SELECT count(*) FROM visits v JOIN cases c ON c.id_no = v.id_no WHERE c.sex = '男'",
    "SELECT visited_at, mode, needs FROM visits ORDER BY 1, 2, 3",
    "SELECT substr(grid_code, 1, 9), count(*) FROM visits GROUP BY 1",
    "SELECT 1 / (length(sex) - 1) FROM cases",
    "SELECT severity FROM cases",
    "SELECT case_id, id_no, source_case_id FROM cases ORDER BY 1",
    "SELECT id_no, visit_id, household_id FROM visits ORDER BY 2",
    "SELECT name FROM cases",
    "SELECT count(*) FROM residents r WHERE EXISTS (SELECT 1 FROM cases c WHERE c.id_no = r.id_no)",
];

#[tokio::test(flavor = "multi_thread")]
async fn sealed_and_hidden_values_leave_no_trace() {
    let one = world(|_, text| text).await;
    // Names, phones, addresses, severities, temperatures and grids below the community are others.
    let other = world(|dataset, text| match dataset {
        "cdc.cases" => lines(&text, |mut cells| {
            cells[2] = "别人";
            cells[5] = "14199999999";
            cells[6] = "别处";
            cells[7] = if cells[7] == "420191001001001" { "420191001001002" } else { cells[7] };
            cells[10] = "重型";
            Some(owned(cells))
        }),
        "community.visits" => lines(&text, |mut cells| {
            cells[4] = "别人";
            cells[5] = "";
            cells[9] = "39.9";
            cells[12] = "";
            Some(owned(cells))
        }),
        _ => text,
    })
    .await;
    let one = transcript(&one, "health-analyst", "epidemiology", &ANALYST).await;
    let other = transcript(&other, "health-analyst", "epidemiology", &ANALYST).await;
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one, other);
    }
}

const WORKER: [&str; 7] = [
    "SELECT grid_code, count(*), max(confirmed_date) FROM cases GROUP BY 1 ORDER BY 1",
    "SELECT visited_at, temperature, mode FROM visits ORDER BY 1, 2",
    "SELECT sex, birth_date, special_group FROM residents ORDER BY 1, 2, 3",
    "SELECT 10 / CAST(temperature - 37.2 AS INT) FROM visits WHERE temperature > 37.15",
    "SELECT CAST(symptoms AS INT) FROM visits WHERE grid_code LIKE '420191001002%'",
    "SELECT count(*) FROM visits WHERE 1 / (length(grid_code) - 15 + CASE WHEN grid_code > '420191001002' THEN 0 ELSE 1 END) = 1",
    "SELECT min(temperature), max(temperature), count(DISTINCT household_id) FROM visits",
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_other_territories_leave_no_trace() {
    let one = world(|_, text| text).await;
    // The neighbouring community is gone from every dataset, or others live there.
    let gone = world(|dataset, text| match dataset {
        "cdc.cases" | "community.visits" | "community.residents" => {
            lines(&text, |cells| (!cells.contains(&"420191001002001")).then(|| owned(cells)))
        }
        _ => text,
    })
    .await;
    let changed = world(|dataset, text| match dataset {
        "community.visits" => lines(&text, |mut cells| {
            if cells.contains(&"420191001002001") {
                cells[9] = "37.2";
                cells[10] = "没有";
            }
            Some(owned(cells))
        }),
        _ => text,
    })
    .await;
    let one = transcript(&one, "grid-worker", "case-management", &WORKER).await;
    for other in [&gone, &changed] {
        let other = transcript(other, "grid-worker", "case-management", &WORKER).await;
        for (one, other) in one.iter().zip(&other) {
            assert_eq!(one, other);
        }
    }
}
