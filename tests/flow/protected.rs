//! The protected aggregate against a toy model: random visits, every shape the grammar allows, counted with
//! nested loops. Noise is taken off, so that who is counted shows.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{CSV, TestHub, fixture};

struct Visit {
    grid: &'static str,
    person: Option<usize>,
    mode: &'static str,
    /// Tenths of a degree.
    temperature: Option<i64>,
}

const GRIDS: [&str; 3] = ["420191001001001", "420191001001002", "420191001002001"];
const MODES: [&str; 3] = ["入户", "电话", "线上"];

/// Count of rows, of values and their mean to a hundred-thousandth, each only where fourteen people stand behind
/// it. Rows that name nobody are not counted, and temperatures count by their distance from 36.8 degrees.
fn model(visits: &[&Visit]) -> Option<(i64, Option<i64>, Option<String>)> {
    let named: Vec<_> = visits.iter().filter(|visit| visit.person.is_some()).collect();
    let people = |keep: &dyn Fn(&Visit) -> bool| {
        named.iter().filter(|visit| keep(visit)).filter_map(|visit| visit.person).collect::<BTreeSet<_>>()
    };
    if people(&|_| true).len() < 14 {
        return None;
    }
    let measured: Vec<i64> = named.iter().filter_map(|visit| visit.temperature).collect();
    let count = measured.len() as i64;
    let enough = people(&|visit| visit.temperature.is_some()).len() >= 14;
    // Whose distances cancel out does not count among those whose distances are added up.
    let away = people(&|visit| visit.temperature.is_some()).into_iter().filter(|person| {
        let theirs = named.iter().filter(|visit| visit.person == Some(*person)).filter_map(|visit| visit.temperature);
        theirs.map(|tenths| tenths - 368).sum::<i64>() != 0
    });
    let known = enough && away.count() >= 14;
    let mean = known.then(|| {
        let mean = measured.iter().sum::<i64>() as f64 / count as f64 / 10.0;
        format!("{mean:.5}")
    });
    Some((named.len() as i64, enough.then_some(count), mean))
}

#[tokio::test(flavor = "multi_thread")]
async fn released_numbers_are_those_of_the_model() {
    let mut random = StdRng::seed_from_u64(7);
    let ids: Vec<String> = (0..40)
        .map(|n| gridhub::demo::city::with_check_digit(&format!("42019119{:02}0101{:03}", 50 + n, 100 + n)))
        .collect();
    for _ in 0..6 {
        let visits: Vec<Visit> = (0..random.random_range(40..240))
            .map(|_| Visit {
                grid: GRIDS[random.random_range(0..3)],
                person: random.random_bool(0.9).then(|| random.random_range(0..40)),
                mode: MODES[random.random_range(0..3)],
                temperature: random.random_bool(0.8).then(|| random.random_range(355..400)),
            })
            .collect();
        let mut file =
            String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned() + "\n";
        for (n, visit) in visits.iter().enumerate() {
            let id = visit.person.map(|person| ids[person].as_str()).unwrap_or_default();
            let temperature =
                visit.temperature.map(|tenths| format!("{}.{}", tenths / 10, tenths % 10)).unwrap_or_default();
            file += &format!("V{n},{},,{id},,,,2026-01-05 10:00:00,{},{temperature},,,\n", visit.grid, visit.mode);
        }
        let hub = TestHub::in_plain_numbers().await;
        hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
        let reply = hub.push("community-uploader", "community.visits", CSV, file.into_bytes()).await;
        assert_eq!(reply.json()["rows_accepted"], visits.len(), "{}", reply.text());

        let token = hub.token("health-analyst");
        type Key = fn(&Visit) -> &str;
        let keys: [(&str, Key); 5] = [
            ("substr(grid_code, 1, 9)", |visit| &visit.grid[..9]),
            ("substr(grid_code, 1, 12)", |visit| &visit.grid[..12]),
            ("grid_code", |visit| visit.grid),
            ("mode", |visit| visit.mode),
            ("CAST(visited_at AS DATE)", |_| "2026-01-05"),
        ];
        type Keep = fn(&Visit) -> bool;
        let filters: [(&str, Keep); 4] = [
            ("mode IN ('入户', '电话')", |visit| visit.mode != "线上"),
            ("substr(grid_code, 1, 12) = '420191001001'", |visit| visit.grid.starts_with("420191001001")),
            ("grid_code BETWEEN '420191001001001' AND '420191001001002' AND mode = '入户'", |visit| {
                visit.grid.starts_with("420191001001") && visit.mode == "入户"
            }),
            ("CAST(visited_at AS DATE) = DATE '2026-01-05'", |_| true),
        ];
        for (key, of) in keys {
            for (filter, keep) in filters {
                let mut groups: BTreeMap<&str, Vec<&Visit>> = BTreeMap::new();
                for visit in visits.iter().filter(|visit| keep(visit)) {
                    groups.entry(of(visit)).or_default().push(visit);
                }
                let expected: Vec<String> = groups
                    .iter()
                    .filter_map(|(key, visits)| {
                        let (rows, count, mean) = model(visits)?;
                        let count = count.map_or_else(|| "null".into(), |count| count.to_string());
                        let mean = mean.unwrap_or_else(|| "null".into());
                        Some(format!("[\"{key}\",{rows},{count},{mean}]"))
                    })
                    .collect();
                let sql = format!(
                    "SELECT {key} AS key, count(*), count(temperature), avg(temperature) FROM visits WHERE {filter} \
                     GROUP BY 1 ORDER BY 1"
                );
                let reply = hub.ask_as(&token, "epidemiology", &sql, "").await;
                assert_eq!(reply.status, 200, "{sql}: {}", reply.text());
                let text = reply.text();
                let rows = text.split_once("\"rows\":[").unwrap().1.split_once("],\"protection\"").unwrap().0;
                assert_eq!(rows, expected.join(","), "{sql}");
                assert_eq!(reply.json()["protection"]["mode"], "protected");
            }
        }
    }
}
