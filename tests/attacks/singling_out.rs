//! Attacks that single somebody out: numbers 7, 14, 21, 23, 25 and 27.

use super::{
    Denied,
    score::{Bar, Class, Score, demand},
    world::{ANALYST, City, Person, QUIET, World, Worlds, last_day, policies},
};
use crate::support::{CSV, fixture};

pub fn denied() -> Vec<Denied> {
    let class = Class::SinglingOut;
    vec![
        Denied::new(
            class,
            "14",
            "groups of one, by a token or a moment",
            &[
                "SELECT id_no, avg(temperature) FROM visits GROUP BY id_no",
                "SELECT household_id, avg(temperature) FROM visits GROUP BY household_id",
                "SELECT visited_at, avg(temperature) FROM visits GROUP BY visited_at",
                "SELECT visit_id, count(*) FROM visits WHERE temperature >= 37.3 GROUP BY visit_id",
                "SELECT DISTINCT id_no, temperature FROM visits",
            ],
        ),
        Denied::new(
            class,
            "21",
            "the largest and the smallest value",
            &[
                "SELECT min(temperature) FROM visits",
                "SELECT grid_code FROM visits GROUP BY 1 HAVING max(temperature) > 39",
                "SELECT id_no, max(temperature) OVER () FROM visits",
                "SELECT max(most) FROM (SELECT id_no, max(temperature) AS most FROM visits GROUP BY id_no) AS m",
                "SELECT greatest(max(temperature), 0) FROM visits",
            ],
        ),
        Denied::new(
            class,
            "23",
            "windows over what is sealed",
            &[
                "SELECT id_no, lag(temperature) OVER (ORDER BY visited_at) FROM visits",
                "SELECT id_no, rank() OVER (ORDER BY temperature) FROM visits",
                "SELECT id_no, sum(temperature) OVER (ORDER BY visited_at) FROM visits",
                "SELECT avg(x) FROM (SELECT temperature AS x, row_number() OVER (ORDER BY id_no) AS k FROM visits) AS r \
                 WHERE k <= 20",
            ],
        ),
        Denied::new(
            class,
            "25",
            "a table of the attacker's own",
            &[
                "WITH mine (id) AS (VALUES ('{TOKEN}')) SELECT avg(v.temperature) FROM visits v JOIN mine m ON m.id = \
                 v.id_no",
                "SELECT count(*) FROM visits v WHERE v.temperature >= 37.3 AND v.id_no IN (SELECT m.id FROM (VALUES \
                 ('{TOKEN}')) AS m (id))",
                "SELECT count(*) FROM visits v JOIN (VALUES (38.5)) AS m (t) ON v.temperature = m.t",
                "SELECT avg(temperature) FROM visits v JOIN (SELECT '{TOKEN}' AS id) m ON m.id = v.id_no",
            ],
        ),
    ]
}

/// What must be told alike whoever the victim is.
pub async fn equal(worlds: &Worlds) -> Vec<Score> {
    vec![rare(worlds).await, coarse_groups(worlds).await]
}

/// 7: conditions that only few people meet, with the sealed one. A cell of few looks like one of nobody.
async fn rare(worlds: &Worlds) -> Score {
    let mut score = Score::new("7", "a rare predicate", Class::SinglingOut, Bar::Equal);
    let victim = worlds.one.city.marked_victim();
    let visit = &victim.visits[0];
    let of = |day: chrono::NaiveDate, what: &str| {
        format!(
            "SELECT {what} FROM visits WHERE grid_code = '{}' AND CAST(visited_at AS DATE) = DATE '{day}' AND mode = '{}'",
            victim.grid, visit.mode
        )
    };
    // Before the first visit of all.
    let never = last_day() - chrono::Days::new(400);
    for what in ["count(*), avg(temperature)", "count(temperature), sum(temperature)"] {
        let told = worlds.tell(ANALYST, &[of(visit.day, what), of(never, what)]).await;
        let (rare, empty) = (&told[0], &told[1]);
        score.add_queries(2, 0);
        score.expect(rare.0.is_answered() && rare.0.number().is_none(), || rare.0.text.clone());
        score.expect(rare.0.text == rare.1.text, || format!("{} and {}", rare.0.text, rare.1.text));
        score.expect(rare.0.text == empty.0.text, || format!("{} and, of nobody, {}", rare.0.text, empty.0.text));
    }
    for grouped in [of(visit.day, "mode, avg(temperature)"), of(never, "mode, avg(temperature)")] {
        let told = worlds.tell(ANALYST, &[format!("{grouped} GROUP BY 1")]).await;
        score.add_queries(1, 0);
        score.expect(told[0].0.is_answered() && told[0].0.rows.is_empty(), || told[0].0.text.clone());
        score.expect(told[0].0.text == told[0].1.text, || format!("{} and {}", told[0].0.text, told[0].1.text));
    }
    score
}

/// 14, in coarse columns: as fine as they go together, groups are of few, and none is told.
async fn coarse_groups(worlds: &Worlds) -> Score {
    let mut score = Score::new("14", "groups of few, by coarse columns", Class::SinglingOut, Bar::Equal);
    let questions = [
        "SELECT grid_code, CAST(visited_at AS DATE), mode, avg(temperature) FROM visits WHERE substr(grid_code, 1, 6) = \
         '420191' GROUP BY 1, 2, 3"
            .to_owned(),
        format!(
            "SELECT confirmed_date, birth_date, count(severity) FROM cases WHERE substr(grid_code, 1, 6) = '{QUIET}' \
             GROUP BY 1, 2"
        ),
    ];
    for (sql, (one, other)) in questions.iter().zip(worlds.tell(ANALYST, &questions).await) {
        score.add_queries(1, 0);
        score.expect(one.is_answered() && one.rows.is_empty(), || format!("{sql}: {}", one.text));
        score.expect(one.text == other.text, || format!("{sql}: {} and {}", one.text, other.text));
    }
    score
}

/// Lets the hospital push visits, and ask of them what is sealed to it.
const SYBIL: &str = r#"
@id("hospital-pushes-visits")
permit (principal in Role::"uploader", action == Action::"batch:push", resource in Dataset::"community.visits")
when { principal in Agency::"hospital" };

@id("hospital-writes-visits")
permit (principal in Role::"uploader", action == Action::"rows:write", resource in Dataset::"community.visits")
when { principal in Agency::"hospital" };

@id("hospital-reads-visits")
permit (principal in Role::"analyst", action == Action::"rows:read", resource in Dataset::"community.visits")
when { principal in Agency::"hospital" && context.purpose == "case-management" };

@id("hospital-sees-visits")
permit (principal in Role::"analyst", action == Action::"field:clear", resource in Dataset::"community.visits")
when {
  principal in Agency::"hospital" && context.purpose == "case-management" &&
  ["grid_code", "visited_at", "mode"].contains(resource.name)
};

@id("hospital-matches-visits")
permit (principal in Role::"analyst", action == Action::"field:token", resource in Dataset::"community.visits")
when {
  principal in Agency::"hospital" && context.purpose == "case-management" && resource.has_token &&
  resource.name == "id_no"
};

@id("hospital-counts-visits")
permit (principal in Role::"analyst", action == Action::"field:aggregate", resource in Dataset::"community.visits")
when {
  principal in Agency::"hospital" && context.purpose == "case-management" && resource.name == "temperature"
};
"#;

/// 27: an agency that may push to a dataset fills the victim's cell up with people whom it invented and whose values
/// it knows. Nobody else vouches for them: the cell is of one, and is not told.
#[tokio::test(flavor = "multi_thread")]
async fn invented_people_do_not_fill_a_cell() {
    let folder = tempfile::tempdir().unwrap();
    let allowing = policies(folder.path(), "sybil.cedar", SYBIL);
    let city = City::small();
    let twin = city.twin();
    let worlds = Worlds {
        one: World::open(city, |opening| opening.policies = allowing.clone()).await,
        other: World::open(twin, |opening| opening.policies = allowing.clone()).await,
    };
    let victim = &worlds.one.city.people[worlds.one.city.marked.alone];
    for world in [&worlds.one, &worlds.other] {
        pad(world, victim).await;
    }

    let mut score = Score::new("27", "padding with invented people", Class::SinglingOut, Bar::Equal);
    let day = victim.confirmed();
    let of_day = |what: &str| format!("SELECT {what} FROM visits WHERE CAST(visited_at AS DATE) = DATE '{day}'");
    let questions = [
        of_day("count(DISTINCT id_no), avg(temperature)"),
        of_day("count(DISTINCT id_no)") + " AND temperature >= 37.3",
        of_day("sum(temperature)"),
    ];
    let clinician = ("hospital-clinician", "case-management");
    for (sql, (one, other)) in questions.iter().zip(worlds.tell(clinician, &questions).await) {
        score.add_queries(1, 0);
        let told: Vec<_> = one.numbers().into_iter().flatten().collect();
        score.expect(one.is_answered() && told.is_empty(), || format!("{sql}: {}", one.text));
        score.expect(one.text == other.text, || format!("{sql}: {} and {}", one.text, other.text));
    }
    // The same cell is there for somebody to whom invented people are people, so it was full.
    let attacker = worlds.one.start_over(0);
    let counted = worlds.one.ask(&questions[0]).await.number();
    score.expect(counted.is_some_and(|people| people > 30.0), || format!("{counted:?} people of 41"));
    drop(attacker);
    demand(&[score]);
}

/// Pushes visits of forty people without fever on the victim's day, from the hospital.
async fn pad(world: &World, victim: &Person) {
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap();
    let mut file = format!("{}\n", header.lines().next().unwrap());
    for number in 0..40 {
        let id = gridhub::demo::city::with_check_digit(&format!("42019919500101{number:03}"));
        let (grid, day) = (&victim.grid, victim.confirmed());
        file += &format!("Y{number},{grid},,{id},,,,{day} 11:00:00,入户,36.5,,,\n");
    }
    let reply = world.hub.push("hospital-uploader", "community.visits", CSV, file.into_bytes()).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.json()["rows_accepted"], 40, "{}", reply.text());
}
