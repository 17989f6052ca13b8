//! The questions of the demo: what a health bureau asks in an outbreak, and what it is refused.

use chrono::{Days, NaiveDate};

/// Questions of an analyst for epidemiology, with dates of the demo's last days.
pub fn analyst(last_day: NaiveDate) -> Vec<(&'static str, String)> {
    let ago = |days: u64| last_day.checked_sub_days(Days::new(days)).unwrap_or(last_day);
    vec![
        (
            "New confirmed cases per day and district",
            "SELECT confirmed_date, substr(grid_code, 1, 6) AS district, count(DISTINCT case_id) AS n \
             FROM cases GROUP BY 1, 2 ORDER BY 1 DESC, 2 LIMIT 6"
                .into(),
        ),
        (
            "City-wide seven-day moving average",
            "WITH d AS (SELECT confirmed_date AS day, count(DISTINCT case_id) AS n FROM cases GROUP BY 1) \
             SELECT day, n, avg(n) OVER (ORDER BY day ROWS BETWEEN 6 PRECEDING AND CURRENT ROW) AS ma7 \
             FROM d ORDER BY day DESC LIMIT 5"
                .into(),
        ),
        (
            "Daily test positivity, last revision of each test",
            "SELECT CAST(sampled_at AS DATE) AS day, count(*) AS tests, \
             avg(CASE WHEN result = '阳性' THEN 1.0 ELSE 0.0 END) AS positivity FROM tests GROUP BY 1 ORDER BY 1"
                .into(),
        ),
        (
            "Communities with the highest attack rate (at least 500 residents)",
            "WITH p AS (SELECT substr(grid_code, 1, 12) AS com, count(DISTINCT id_no) AS pop FROM residents GROUP BY 1), \
             c AS (SELECT grid_code AS com, count(DISTINCT case_id) AS n FROM cases GROUP BY 1) \
             SELECT d.name, n, pop, round(1000.0 * n / pop, 1) AS per_1000 FROM p JOIN c ON p.com = c.com \
             JOIN divisions d ON d.code = p.com WHERE pop >= 500 ORDER BY per_1000 DESC LIMIT 5"
                .into(),
        ),
        (
            "Grids with an active quarantine order but no visit in the last two days",
            format!(
                "SELECT DISTINCT q.grid_code FROM quarantine_orders q LEFT JOIN (SELECT DISTINCT grid_code FROM visits \
                 WHERE visited_at >= DATE '{}') v ON q.grid_code = v.grid_code \
                 WHERE q.end_date >= DATE '{last_day}' AND v.grid_code IS NULL ORDER BY 1 LIMIT 5",
                ago(1)
            ),
        ),
        (
            "Close contacts in quarantine without a test in the last three days, per subdistrict",
            format!(
                "SELECT substr(q.grid_code, 1, 9) AS subdistrict, count(DISTINCT q.id_no) AS untested \
                 FROM quarantine_orders q WHERE q.reason = '密接' AND q.end_date >= DATE '{last_day}' \
                 AND NOT EXISTS (SELECT 1 FROM tests t WHERE t.id_no = q.id_no AND t.sampled_at >= DATE '{}') \
                 GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
                ago(3)
            ),
        ),
        (
            "Early warning: stores selling over twice their usual fever medicine",
            "WITH d AS (SELECT store_uscc, CAST(sold_at AS DATE) AS day, sum(qty) AS q FROM sales \
             WHERE category = '退热' GROUP BY 1, 2), w AS (SELECT *, avg(q) OVER (PARTITION BY store_uscc ORDER BY day \
             ROWS BETWEEN 7 PRECEDING AND 1 PRECEDING) AS before FROM d) \
             SELECT store_uscc, day, q, round(before, 1) AS before FROM w WHERE q > 2 * before ORDER BY q DESC LIMIT 5"
                .into(),
        ),
        (
            "Buyers of fever medicine not tested since, by community: sales joined to tests and residents by token",
            "SELECT substr(r.grid_code, 1, 12) AS com, count(DISTINCT s.buyer_id_no) AS n FROM sales s \
             JOIN residents r ON r.id_no = s.buyer_id_no WHERE s.category = '退热' AND NOT EXISTS (SELECT 1 FROM tests t \
             WHERE t.id_no = s.buyer_id_no AND t.sampled_at >= s.sold_at) GROUP BY 1 ORDER BY 2 DESC LIMIT 5"
                .into(),
        ),
        (
            "Share of residents over 60 with three or more doses, per subdistrict",
            "WITH d AS (SELECT id_no, max(dose_no) AS doses FROM vaccinations GROUP BY 1) \
             SELECT substr(r.grid_code, 1, 9) AS subdistrict, count(DISTINCT r.id_no) AS elderly, \
             round(count(DISTINCT CASE WHEN d.doses >= 3 THEN r.id_no END) * 1.0 / count(DISTINCT r.id_no), 3) AS coverage \
             FROM residents r LEFT JOIN d ON d.id_no = r.id_no WHERE r.birth_date <= DATE '1966-01-01' \
             GROUP BY 1 ORDER BY 3 LIMIT 5"
                .into(),
        ),
        (
            "Transmission chain below one index case, with depth",
            "WITH RECURSIVE k AS (SELECT case_id, 0 AS depth FROM (SELECT min(source_case_id) AS case_id FROM cases) i \
             UNION ALL SELECT c.case_id, k.depth + 1 FROM cases c JOIN k ON c.source_case_id = k.case_id WHERE k.depth < 10) \
             SELECT depth, count(DISTINCT case_id) AS n FROM k GROUP BY 1 ORDER BY 1"
                .into(),
        ),
        (
            "Needs reported on the last day, per subdistrict",
            format!(
                "SELECT substr(grid_code, 1, 9) AS subdistrict, needs, count(*) AS n FROM visits \
                 WHERE visited_at >= DATE '{last_day}' AND needs IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 5"
            ),
        ),
        (
            "A protected statistic: body temperature is sealed, its mean per subdistrict is not",
            "SELECT substr(grid_code, 1, 9) AS subdistrict, count(DISTINCT id_no) AS people, avg(temperature) AS mean \
             FROM visits GROUP BY 1 ORDER BY 1 LIMIT 5"
                .into(),
        ),
        (
            "Another: feverish residents found on visits who were not tested afterwards",
            "SELECT division(v.grid_code, 'subdistrict') AS subdistrict, count(DISTINCT v.id_no) AS n FROM visits v \
             WHERE v.temperature >= 37.3 AND NOT EXISTS (SELECT 1 FROM tests t WHERE t.id_no = v.id_no \
             AND t.sampled_at >= v.visited_at) GROUP BY 1 ORDER BY 2 DESC LIMIT 5"
                .into(),
        ),
    ]
}

/// What an analyst is refused.
pub const REFUSED: [&str; 3] = [
    "SELECT name, phone FROM cases",
    "SELECT id_no, severity FROM cases",
    "SELECT avg(temperature) FROM visits WHERE temperature > 38.4",
];

/// Questions of a grid worker.
pub fn worker() -> Vec<(&'static str, String)> {
    vec![
        (
            "Every case this worker can see, by grid",
            "SELECT grid_code, count(*) AS cases, max(confirmed_date) AS newest FROM cases GROUP BY 1 ORDER BY 1"
                .into(),
        ),
        (
            "Whom to visit: orders in force, people as this worker's own tokens",
            "SELECT grid_code, id_no, kind, end_date FROM quarantine_orders ORDER BY end_date DESC, id_no LIMIT 4"
                .into(),
        ),
    ]
}

/// Questions of a pharmacy chain.
pub fn planner() -> Vec<(&'static str, String)> {
    vec![
        (
            "Cases per community as the chain may know them: counts with noise, small groups absent",
            "SELECT grid_code AS community, count(*) AS cases FROM cases GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5".into(),
        ),
        (
            "How many of its customers fell ill: sales and cases meet inside the hub, and neither side sees the other's people",
            "SELECT s.category, count(DISTINCT s.buyer_id_no) AS ill FROM sales s \
         WHERE EXISTS (SELECT 1 FROM cases c WHERE c.id_no = s.buyer_id_no) GROUP BY 1 ORDER BY 2 DESC"
                .into(),
        ),
    ]
}
