//! What fails and what it is told as: SQLSTATE, message, detail and hint; transactions that failed; settings.

use super::super::support::{Line, Site, told};

async fn analyst(site: &Site) -> Line {
    site.line("health-analyst", "epidemiology").await
}

/// What both protocols say of a statement, which must be the same.
async fn said(line: &Line, sql: &str) -> String {
    let simple = line.fails(sql).await;
    assert_eq!(line.fails_prepared(sql).await, simple, "{sql}");
    simple
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_errors_have_their_codes_and_say_what_would_pass() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    let refused = said(&line, "SELECT sex, count(*) FROM cases WHERE severity LIKE '重%' GROUP BY 1").await;
    let [first, detail, hint] = <[&str; 3]>::try_from(refused.lines().collect::<Vec<_>>()).unwrap();
    assert!(first.starts_with("ERROR 42501 `severity` is tested by something other than"), "{first}");
    assert_eq!(detail, "detail: rule: protected-filter");
    assert!(hint.starts_with("hint: filter by sex, birth_date, grid_code"), "{hint}");
    for (sql, code) in [
        ("SELECT severity FROM cases", "42501"),
        ("SELECT name FROM cases", "42703"),
        ("SELECT nonsense FROM cases", "42703"),
        ("SELECT 1 FROM nothing", "42P01"),
        ("SELECT 1 FROM hub.access_log", "42P01"),
        ("SELEC 1", "42601"),
        ("SELECT 'unfinished", "42601"),
        ("SELECT (1 FROM divisions", "42601"),
    ] {
        let said = said(&line, sql).await;
        assert!(said.starts_with(&format!("ERROR {code} ")), "{sql}: {said}");
    }
    let fault = line.fails("SELECT 1 / (level - 1) FROM divisions").await;
    assert!(fault.starts_with("ERROR 22000 "), "{fault}");
    let listed = said(&line, "SELECT 1 FROM nothing").await;
    assert!(listed.contains("hint: ") && !listed.contains("/v1/"), "a hint for this door and not another: {listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hidden_is_told_of_like_what_is_not_there() {
    let site = Site::city().await;
    let line = site.line("pharmacy-planner", "supply-planning").await;
    for (hidden, nowhere) in [
        ("community.residents", "community.residence"),
        ("residents", "residence"),
        ("hospital.tests", "hospital.texts"),
        ("tests", "texts"),
    ] {
        for sql in ["SELECT 1 FROM {}", "SELECT * FROM {} WHERE x = 1", "COPY {} TO STDOUT", "EXPLAIN SELECT 1 FROM {}"]
        {
            let (there, not) = (sql.replace("{}", hidden), sql.replace("{}", nowhere));
            let (there, not) = (line.fails(&there).await, line.fails(&not).await);
            assert!(there.starts_with("ERROR 42P01 "), "{there}");
            assert_eq!(there.replace(hidden, nowhere), not);
        }
        let prepared = said(&line, &format!("SELECT 1 FROM {hidden}")).await;
        assert_eq!(prepared.replace(hidden, nowhere), said(&line, &format!("SELECT 1 FROM {nowhere}")).await);
    }
    for (hidden, nowhere) in [("severity", "severely"), ("name", "game"), ("onset_date", "other_date")] {
        for sql in
            ["SELECT {} FROM cases", "SELECT count(*) FROM cases WHERE {} = '1'", "SELECT count(c.{}) FROM cases c"]
        {
            let there = said(&line, &sql.replace("{}", hidden)).await;
            assert!(there.starts_with("ERROR 42703 "), "{there}");
            assert_eq!(there.replace(hidden, nowhere), said(&line, &sql.replace("{}", nowhere)).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purpose_is_asked_for_and_set() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "").await;
    let missing = said(&line, "SELECT name FROM divisions").await;
    let (first, hint) = missing.split_once('\n').unwrap();
    assert_eq!(first, "ERROR 22023 name a purpose");
    assert!(hint.contains("epidemiology") && hint.contains("supply-planning"), "{hint}");
    for wrong in ["audit", "case-management", "EPIDEMIOLOGY", "nonsense"] {
        let refused = line.fails(&format!("SET purpose = '{wrong}'")).await;
        assert!(refused.starts_with(&format!("ERROR 22023 purpose `{wrong}` is not open to this caller")), "{refused}");
        assert!(refused.contains("hint: ") && refused.contains("supply-planning"), "{refused}");
    }
    assert_eq!(line.lines("SHOW purpose").await, [""]);
    line.batch_execute("SET purpose = 'supply-planning'").await.unwrap();
    assert_eq!(line.lines("SHOW purpose").await, ["supply-planning"]);
    assert!(line.fails("SELECT 1 FROM visits").await.starts_with("ERROR 42P01 "));
    line.batch_execute("SET SESSION purpose TO epidemiology").await.unwrap();
    assert_eq!(line.lines("SELECT count(*) FROM visits").await, ["16"]);
    assert_eq!(line.lines("SELECT current_setting('purpose')").await, ["epidemiology"]);
    assert_eq!(line.lines("SELECT set_config('purpose', 'supply-planning', false)").await, ["supply-planning"]);
    let row = line.query_one("SHOW purpose", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "supply-planning");
    line.batch_execute("RESET purpose").await.unwrap();
    assert_eq!(line.fails("SELECT name FROM divisions").await, missing);

    // What the connection began with is what it goes back to.
    let line = analyst(&site).await;
    line.batch_execute("SET purpose = 'supply-planning'; RESET ALL").await.unwrap();
    assert_eq!(line.lines("SHOW purpose").await, ["epidemiology"]);
    // Whoever has one purpose need not name it.
    let worker = site.line("grid-worker", "").await;
    assert_eq!(worker.lines("SELECT count(*) FROM cases").await, ["12"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_by_statements() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    for sql in [
        "INSERT INTO platform.divisions VALUES ('1', 'x', 1, NULL)",
        "UPDATE divisions SET name = 'x'",
        "DELETE FROM cases",
        "TRUNCATE cases",
        "CREATE TABLE copy AS SELECT * FROM cases",
        "CREATE VIEW copy AS SELECT * FROM cases",
        "CREATE EXTERNAL TABLE passwd STORED AS CSV LOCATION '/etc/passwd'",
        "DROP TABLE cases",
        "GRANT SELECT ON cases TO PUBLIC",
        "SELECT * FROM cases FOR UPDATE",
        "SET ROLE \"hub-admin\"",
        "SET SESSION AUTHORIZATION 'hub-admin'",
        "DO $$ BEGIN END $$",
        "CALL erase()",
        "LOCK TABLE cases",
        "VACUUM",
    ] {
        let said = line.fails(sql).await;
        let code = said.split(' ').nth(1).unwrap_or_default();
        // What has no meaning in the dialect is no syntax of it.
        assert!(["42501", "42601"].contains(&code), "{sql}: {said}");
        assert!(line.fails_prepared(sql).await.starts_with("ERROR 42"), "{sql}");
    }
    for sql in ["INSERT INTO platform.divisions VALUES ('1', 'x', 1, NULL)", "DELETE FROM cases", "DROP TABLE cases"] {
        let said = line.fails(sql).await;
        assert!(said.starts_with("ERROR 42501 ") && said.contains("rule: read-only"), "{sql}: {said}");
    }
    assert!(line.fails("SET ROLE \"hub-admin\"").await.starts_with("ERROR 42501 "));
    assert!(line.fails("SET SESSION AUTHORIZATION 'hub-admin'").await.starts_with("ERROR 42501 "));
    assert!(line.fails("SET session_authorization = 'hub-admin'").await.starts_with("ERROR "));
    assert_eq!(line.lines("SHOW session_authorization").await, ["health-analyst"]);
    line.batch_execute("SET ROLE NONE").await.unwrap();
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_failed_hears_nothing_but_its_end() {
    let site = Site::city().await;
    let mut line = analyst(&site).await;
    line.batch_execute("BEGIN; SET purpose = 'supply-planning'").await.unwrap();
    assert!(line.fails("SELECT nothing FROM divisions").await.starts_with("ERROR 42703 "));
    for sql in
        ["SELECT count(*) FROM divisions", "SELECT 1", "SHOW purpose", "SET purpose = 'epidemiology'", "SAVEPOINT s"]
    {
        assert!(line.fails(sql).await.starts_with("ERROR 25P02 "), "{sql}");
        assert!(line.fails_prepared(sql).await.starts_with("ERROR 25P02 "), "{sql}");
    }
    line.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(line.lines("SHOW purpose").await, ["epidemiology"], "settings go back with their transaction");

    // COMMIT of a failed one is its end, too.
    line.batch_execute("BEGIN").await.unwrap();
    line.fails_prepared("SELECT nothing FROM divisions").await;
    line.batch_execute("COMMIT").await.unwrap();
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);

    line.batch_execute("BEGIN; SAVEPOINT s").await.unwrap();
    line.fails("SELECT nothing FROM divisions").await;
    line.batch_execute("ROLLBACK TO SAVEPOINT s").await.unwrap();
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);
    line.batch_execute("SET LOCAL purpose = 'supply-planning'").await.unwrap();
    assert_eq!(line.lines("SHOW purpose").await, ["supply-planning"]);
    line.batch_execute("COMMIT").await.unwrap();
    assert_eq!(line.lines("SHOW purpose").await, ["epidemiology"]);

    // As drivers use them.
    let transaction = line.build_transaction().read_only(true).start().await.unwrap();
    assert!(told(&transaction.query("SELECT nothing FROM divisions", &[]).await.unwrap_err()).contains("42703"));
    transaction.rollback().await.unwrap();
    let mut transaction = line.transaction().await.unwrap();
    let inner = transaction.savepoint("inner").await.unwrap();
    inner.query("SELECT nothing FROM divisions", &[]).await.unwrap_err();
    inner.rollback().await.unwrap();
    assert_eq!(transaction.query("SELECT code FROM divisions", &[]).await.unwrap().len(), 9);
    transaction.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_other_clients_are_taken_and_unknown_ones_refused() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    for sql in [
        "SET application_name = 'a tool'",
        "SET extra_float_digits = 3",
        "SET DateStyle = 'ISO'",
        "SET client_encoding TO 'UTF8'",
        "SET NAMES 'utf-8'",
        "SET TIME ZONE 'Asia/Shanghai'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET standard_conforming_strings = on",
        "UNLISTEN *",
        "DISCARD ALL",
        "DEALLOCATE ALL",
        "CLOSE ALL",
    ] {
        line.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {}", told(&error)));
    }
    for (sql, code) in [
        ("SET nonsense = 1", "42704"),
        ("SHOW nonsense", "42704"),
        ("SET client_encoding = 'GBK'", "22023"),
        ("SET is_superuser = on", "22023"),
        ("SET server_version = '9'", "22023"),
        ("SET statement_timeout = 'soon'", "22023"),
        ("SET gridhub.small_cells = 'show'", "22023"),
        ("LISTEN news", "0A000"),
        ("DEALLOCATE nothing", "26000"),
        ("CLOSE nothing", "34000"),
        ("SAVEPOINT s", "25P01"),
        ("SET", "42601"),
    ] {
        let said = line.fails(sql).await;
        assert!(said.starts_with(&format!("ERROR {code} ")), "{sql}: {said}");
    }
    assert_eq!(line.lines("SHOW server_version_num").await, ["160004"]);
    assert!(line.lines("SHOW server_version").await[0].starts_with("16.4 (gridhub "));
    assert!(line.texts("SHOW ALL").await.len() > 20);
    assert_eq!(line.query("SHOW ALL", &[]).await.unwrap()[0].len(), 3);
}
