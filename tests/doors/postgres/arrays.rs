//! Arrays as parameters: `= ANY ($1)` is IN, and `<> ALL ($1)` NOT IN, of values, tokens and sealed fields alike.

use chrono::{DateTime, NaiveDate, Utc};
use tokio_postgres::types::{ToSql, Type};

use super::super::support::{Line, Site, told};
use crate::support::TestHub;

async fn count(line: &Line, sql: &str, value: &(dyn ToSql + Sync)) -> i64 {
    let row = line.query_one(sql, &[value]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {}", told(&error))).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_are_compared_as_lists() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    // Their types are those of what they are compared with.
    for (condition, kind) in [
        ("code = ANY ($1)", Type::TEXT_ARRAY),
        ("level <> ALL ($1)", Type::INT2_ARRAY),
        ("level = ANY ($1::bigint[])", Type::INT8_ARRAY),
        ("$1 IS NULL OR code = ANY ($1)", Type::TEXT_ARRAY),
    ] {
        let sql = format!("SELECT count(*) FROM divisions WHERE {condition}");
        assert_eq!(line.prepare(&sql).await.unwrap().params(), [kind], "{sql}");
    }
    let known = line.prepare("SELECT 1 FROM cases WHERE confirmed_date = ANY ($1) AND sex = ANY ($2)").await.unwrap();
    assert_eq!(known.params(), [Type::DATE_ARRAY, Type::TEXT_ARRAY]);

    let any = "SELECT count(*) FROM divisions WHERE code = ANY ($1)";
    let all = "SELECT count(*) FROM divisions WHERE code <> ALL ($1)";
    assert_eq!(count(&line, any, &vec!["42", "4201", "nowhere"]).await, 2);
    assert_eq!(count(&line, all, &vec!["42", "4201", "nowhere"]).await, 7);
    assert_eq!(count(&line, any, &vec!["42,4201", "{42}", "\"42\""]).await, 0);
    // Of nothing, of NULL, and no array at all.
    assert_eq!(count(&line, any, &Vec::<&str>::new()).await, 0);
    assert_eq!(count(&line, all, &Vec::<&str>::new()).await, 9);
    assert_eq!(count(&line, any, &vec![Some("42"), None]).await, 1);
    assert_eq!(count(&line, all, &vec![Some("42"), None]).await, 0);
    assert_eq!(count(&line, any, &None::<Vec<&str>>).await, 0);
    assert_eq!(count(&line, all, &None::<Vec<&str>>).await, 0);
    // A missing parent is in no list, and out of none but that of nothing.
    let parent = "SELECT count(*) FROM divisions WHERE parent_code <> ALL ($1)";
    assert_eq!(count(&line, parent, &vec!["42"]).await, 7);
    assert_eq!(count(&line, parent, &Vec::<&str>::new()).await, 9);
    // Three grids, one province.
    assert_eq!(count(&line, "SELECT count(*) FROM divisions WHERE level = ANY ($1)", &vec![1_i16, 6]).await, 4);
    let wide = "SELECT count(*) FROM divisions WHERE level = ANY ($1::bigint[])";
    assert_eq!(count(&line, wide, &vec![1_i64, 6]).await, 4);
    let days: Vec<_> = [6, 7].map(|day| NaiveDate::from_ymd_opt(2026, 1, day).unwrap()).to_vec();
    assert_eq!(count(&line, "SELECT count(*) FROM cases WHERE confirmed_date = ANY ($1)", &days).await, 6);
    let first: DateTime<Utc> = "2026-01-04T23:30:00Z".parse().unwrap();
    assert_eq!(count(&line, "SELECT count(*) FROM visits WHERE visited_at = ANY ($1)", &vec![first]).await, 1);
    let optional = "SELECT count(*) FROM divisions WHERE $1 IS NULL OR code = ANY ($1)";
    assert_eq!(count(&line, optional, &vec!["42"]).await, 1);
    assert_eq!(count(&line, optional, &None::<Vec<&str>>).await, 9);
    // As columns they are true, false or nothing.
    let rows = line.query("SELECT code = ANY ($1) FROM divisions ORDER BY code LIMIT 2", &[&vec!["42"]]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<bool>>(), [true, false]);

    // Written out, as clients do that bind on their own side, and people.
    for (condition, expected) in [
        ("code = ANY ('{42,4201}')", "2"),
        ("code = ANY ('{42,4201}'::text[])", "2"),
        ("code = SOME (ARRAY['42', '4201'])", "2"),
        ("code <> ALL (ARRAY['42', '4201']::varchar[])", "7"),
        ("level = ANY ('{1,6}'::int[])", "4"),
        ("level = ANY (ARRAY[1, 6])", "4"),
        ("code = ANY ('{}')", "0"),
        ("NOT code = ANY ('{}')", "9"),
        ("parent_code = ANY ('{}') IS NULL", "0"),
        ("parent_code = ANY ('{42}') IS NULL", "1"),
    ] {
        let sql = format!("SELECT count(*) FROM divisions WHERE {condition}");
        assert_eq!(line.lines(&sql).await, [expected], "{sql}");
    }
    line.batch_execute("PREPARE p (text[]) AS SELECT count(*) FROM divisions WHERE code = ANY ($1)").await.unwrap();
    assert_eq!(line.lines("EXECUTE p ('{42,\"4201\"}')").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_sealed_fields_are_looked_for_as_in_lists() {
    let site = Site::open(TestHub::with_city_in_plain_numbers().await).await;
    let line = site.line("health-analyst", "epidemiology").await;
    let rows = line.query("SELECT DISTINCT id_no FROM cases WHERE id_no IS NOT NULL LIMIT 2", &[]).await.unwrap();
    let tokens: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let [one, other] = tokens.as_slice() else { panic!("{tokens:?}") };
    for dataset in ["cases", "visits", "vaccinations"] {
        let sql = |condition: &str| format!("SELECT count(*) FROM {dataset} WHERE id_no {condition}");
        let listed = line.lines(&sql(&format!("IN ('{one}', '{other}')"))).await;
        let rest = line.lines(&sql(&format!("NOT IN ('{one}', '{other}')"))).await;
        assert_eq!([count(&line, &sql("= ANY ($1)"), &tokens).await.to_string()], listed[..], "{dataset}");
        assert_eq!([count(&line, &sql("<> ALL ($1)"), &tokens).await.to_string()], rest[..], "{dataset}");
        // Neither a raw identifier nor what is no token is found.
        assert_eq!(count(&line, &sql("= ANY ($1)"), &vec!["42019119500110001X", "no token"]).await, 0);
    }
    assert!(count(&line, "SELECT count(*) FROM cases WHERE id_no = ANY ($1)", &tokens).await >= 2);

    // The same people have the same number, whichever way they are asked for.
    let protected = "SELECT count(temperature) FROM visits WHERE mode";
    assert_eq!(line.lines(&format!("{protected} IN ('入户', '电话')")).await, ["16"]);
    assert_eq!(count(&line, &format!("{protected} = ANY ($1)"), &vec!["入户", "电话"]).await, 16);
    assert_eq!(line.lines(&format!("{protected} = ANY ('{{入户,电话}}')")).await, ["16"]);

    // What IN is refused for, ANY is refused for, in the same words; NOT IN and ALL too.
    for (from, listed, array) in [
        ("SELECT case_id FROM cases WHERE", "severity IN ('重型', '危重型')", "severity = ANY ('{重型,危重型}')"),
        ("SELECT count(*) FROM cases WHERE", "severity NOT IN ('重型')", "severity <> ALL (ARRAY['重型'])"),
        (
            "SELECT avg(temperature) FROM visits WHERE",
            "temperature IN (37.25, 38)",
            "temperature = ANY (ARRAY[37.25, 38])",
        ),
        ("SELECT avg(temperature) FROM visits WHERE", "id_no IN ('a', 'b')", "id_no = ANY ('{a,b}')"),
        ("SELECT avg(temperature) FROM visits WHERE", "mode IN ('入户', 5)", "mode = ANY (ARRAY['入户', 5])"),
    ] {
        let refused = line.fails(&format!("{from} {listed}")).await;
        assert!(refused.starts_with("ERROR 42501 "), "{refused}");
        assert_eq!(line.fails(&format!("{from} {array}")).await, refused, "{array}");
    }
    let severe = "SELECT case_id FROM cases WHERE severity";
    let refused = line.fails(&format!("{severe} IN ('重型', '危重型')")).await;
    let by_array = line.query(&format!("{severe} = ANY ($1)"), &[&vec!["重型", "危重型"]]).await.unwrap_err();
    assert_eq!(told(&by_array), refused);
    // Also where there is nothing to look for.
    let by_array = line.query(&format!("{severe} = ANY ($1)"), &[&Vec::<&str>::new()]).await.unwrap_err();
    assert_eq!(told(&by_array), refused);
    // A hidden field is as unknown as one that is not there.
    let unknown = line.query("SELECT 1 FROM residents WHERE phone = ANY ($1)", &[&vec!["14888123456"]]).await;
    assert!(told(&unknown.unwrap_err()).starts_with("ERROR 42703 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_else_is_done_with_arrays_is_refused_and_told_what_passes() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    for condition in [
        "code > ANY (ARRAY['42'])",
        "code = ALL (ARRAY['42'])",
        "code = ANY (name)",
        "code = ANY (string_to_array('42,4201', ','))",
        "code = ANY (ARRAY['42'] || ARRAY['4201'])",
    ] {
        let refused = line.fails(&format!("SELECT count(*) FROM divisions WHERE {condition}")).await;
        assert!(refused.starts_with("ERROR 42501 ") && refused.contains("x = ANY ($1)"), "{condition}: {refused}");
    }
    let malformed = line.fails("SELECT count(*) FROM divisions WHERE code = ANY ('42')").await;
    assert!(malformed.starts_with("ERROR 42601 ") && malformed.contains("{a,b}"), "{malformed}");
    let statement = line.prepare_typed("SELECT count(*) FROM divisions WHERE code IN ($1)", &[Type::TEXT_ARRAY]).await;
    let refused = told(&statement.err().unwrap());
    assert!(refused.starts_with("ERROR 42501 ") && refused.contains("x = ANY ($1)"), "{refused}");
    // As much as a statement may hold, and no more.
    let any = "SELECT count(*) FROM divisions WHERE code = ANY ($1)";
    assert_eq!(count(&line, any, &vec!["42"; 10_000]).await, 1);
    let many = told(&line.query(any, &[&vec!["42"; 20_000]]).await.unwrap_err());
    assert!(many.starts_with("ERROR 54000 ") && many.contains("64 KiB"), "{many}");
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"], "and the line goes on");
}
