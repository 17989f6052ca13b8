//! What clients read of the catalogue: this caller's view, as the hub itself lists it, and no name beside.

use std::collections::BTreeSet;

use super::super::support::{Line, Site, rows_of};

/// Callers whose views differ, with purposes.
const CALLERS: [(&str, &str); 3] =
    [("health-analyst", "epidemiology"), ("pharmacy-planner", "supply-planning"), ("grid-worker", "case-management")];

const SYSTEM: &str = "('pg_catalog', 'information_schema')";

/// The tables and columns that the hub lists, as `agency.table` and `agency.table.column`.
async fn listed(site: &Site, caller: &str, purpose: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let credential = site.hub().authenticate(&site.hub.token(caller)).await.unwrap();
    let listed = site.hub().catalogue(&credential, Some(purpose)).unwrap();
    let tables = listed.iter().map(|dataset| dataset.name.clone()).collect();
    let columns = listed.iter().flat_map(|set| set.fields.iter().map(|field| format!("{}.{}", set.name, field.name)));
    (tables, columns.collect())
}

async fn names(line: &Line, sql: &str) -> BTreeSet<String> {
    let rows = line.texts(sql).await;
    let count = rows.len();
    let names: BTreeSet<_> =
        rows.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(".")).collect();
    assert_eq!(names.len(), count, "each once: {sql}");
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_find_the_callers_view_and_nothing_else() {
    let site = Site::city().await;
    for (caller, purpose) in CALLERS {
        let line = site.line(caller, purpose).await;
        let (tables, columns) = listed(&site, caller, purpose).await;
        assert!(!tables.is_empty() && columns.len() > tables.len());
        for sql in [
            format!(
                "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema NOT IN {SYSTEM}"
            ),
            format!("SELECT schemaname, tablename FROM pg_catalog.pg_tables WHERE schemaname NOT IN {SYSTEM}"),
            format!(
                "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
                 ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p') AND n.nspname NOT IN {SYSTEM}"
            ),
        ] {
            assert_eq!(names(&line, &sql).await, tables, "{caller}: {sql}");
        }
        for sql in [
            format!(
                "SELECT table_schema, table_name, column_name FROM information_schema.columns \
                 WHERE table_schema NOT IN {SYSTEM}"
            ),
            format!(
                "SELECT n.nspname, c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE a.attnum > 0 AND NOT a.attisdropped AND n.nspname NOT IN {SYSTEM}"
            ),
        ] {
            assert_eq!(names(&line, &sql).await, columns, "{caller}: {sql}");
        }
        let agencies: BTreeSet<_> = tables.iter().map(|name| name.split('.').next().unwrap().to_owned()).collect();
        let schemas = names(&line, "SELECT nspname FROM pg_namespace").await;
        let own: BTreeSet<_> = schemas
            .into_iter()
            .filter(|name| !["pg_catalog", "information_schema", "public"].contains(&name.as_str()))
            .collect();
        assert_eq!(own, agencies, "{caller}");
        assert_eq!(line.lines("SELECT datname FROM pg_database").await, ["hub"]);
        assert_eq!(line.lines("SELECT rolname FROM pg_roles").await, [caller]);
        assert_eq!(line.lines("SELECT current_user, current_database()").await, [format!("{caller} hub")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_follows_the_purpose() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let sql = format!(
        "SELECT table_schema, table_name, column_name FROM information_schema.columns \
         WHERE table_schema NOT IN {SYSTEM}"
    );
    let study = names(&line, &sql).await;
    line.batch_execute("SET purpose = 'supply-planning'").await.unwrap();
    let planning = names(&line, &sql).await;
    assert_eq!(planning, listed(&site, "health-analyst", "supply-planning").await.1);
    assert!(study.contains("community.visits.mode") && !planning.contains("community.visits.mode"));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_have_the_types_that_rows_come_in() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    for (table, column, word) in [
        ("vaccinations", "dose_no", "smallint"),
        ("vaccinations", "vaccinated_on", "date"),
        ("vaccinations", "id_no", "text"),
        ("visits", "visited_at", "timestamp with time zone"),
        ("divisions", "name", "text"),
    ] {
        let sql = format!(
            "SELECT data_type FROM information_schema.columns WHERE table_name = '{table}' AND column_name = '{column}'"
        );
        assert_eq!(line.lines(&sql).await, [word], "{table}.{column}");
        let oid = line
            .lines(&format!(
                "SELECT a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
                 WHERE c.relname = '{table}' AND a.attname = '{column}'"
            ))
            .await;
        let prepared = line.prepare(&format!("SELECT {column} FROM {table}")).await.unwrap();
        assert_eq!(oid, [prepared.columns()[0].type_().oid().to_string()], "{table}.{column}");
    }
    // How much of a field is shown stands beside it.
    let described = line
        .lines(
            "SELECT d.description FROM pg_description d JOIN pg_class c ON c.oid = d.objoid \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid \
             WHERE c.relname = 'cases' AND a.attname = 'severity'",
        )
        .await;
    assert_eq!(described, ["aggregate: Clinical severity at the time of the report."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_table_of_the_catalogue_knows_a_hidden_name() {
    /// What the planner may not know of: datasets, fields and other callers.
    const HIDDEN: [&str; 14] = [
        "residents",
        "quarantine_orders",
        "vaccinations",
        "temperature",
        "severity",
        "special_group",
        "household_id",
        "worker_id",
        "test_id",
        "ct_value",
        "onset_date",
        "buyer_phone",
        "health-analyst",
        "hub-admin",
    ];
    let site = Site::city().await;
    // Others are at work meanwhile.
    let others = [site.line("health-analyst", "epidemiology").await, site.line("hub-admin", "quality-control").await];
    for other in &others {
        other.lines("SELECT count(*) FROM divisions").await;
    }
    let line = site.line("pharmacy-planner", "supply-planning").await;
    let tables = line
        .texts(&format!(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname IN {SYSTEM} AND c.relkind IN ('r', 'v')"
        ))
        .await;
    assert!(tables.len() > 50, "{}", tables.len());
    let mut seen = String::new();
    for table in tables {
        let [schema, table] = [0, 1].map(|at| table[at].clone().unwrap());
        let rows = line.texts(&format!("SELECT * FROM {schema}.\"{table}\"")).await;
        let text: String = rows.iter().flatten().flatten().map(|cell| format!("{cell}\n")).collect();
        for name in HIDDEN {
            assert!(!text.contains(name), "{schema}.{table} knows {name}");
        }
        seen.push_str(&text);
    }
    for name in ["pharmacy", "sales", "confirmed_date", "pharmacy-planner"] {
        assert!(seen.contains(name), "the search looks past {name}");
    }
    // Nor does it show what others do.
    for table in ["pg_stat_activity", "pg_locks", "pg_prepared_statements", "pg_cursors"] {
        let rows = line.simple_query(&format!("SELECT * FROM pg_catalog.{table}")).await;
        if let Ok(messages) = rows {
            assert!(rows_of(&messages).len() <= 1, "{table}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_has_no_rows_of_datasets() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    // A question that names both goes through the gate, where there is no catalogue.
    let mixed = line.fails("SELECT count(*) FROM cases c, pg_catalog.pg_class k").await;
    assert!(mixed.starts_with("ERROR 42P01 "), "{mixed}");
    for sql in [
        "SELECT reltuples FROM pg_class WHERE relname = 'cases'",
        "SELECT pg_relation_size('cdc.cases')",
        "SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = 'cases'",
    ] {
        if let Ok(messages) = line.simple_query(sql).await {
            let rows = rows_of(&messages);
            assert!(rows.iter().flatten().flatten().all(|cell| cell == "-1" || cell == "0"), "{sql}: {rows:?}");
        }
    }
    for sql in [
        "CREATE TEMP TABLE x (a int)",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_ls_dir('/')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT pg_sleep(60)",
    ] {
        let said = line.fails(sql).await;
        assert!(said.starts_with("ERROR 42") || said.starts_with("ERROR 0A000"), "{sql}: {said}");
    }
}
