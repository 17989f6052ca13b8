//! A world as the hub reads it: contracts, policies and entities in a folder, rows as CSV, and a hub that
//! was opened on them.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, path::Path};

use chrono::TimeDelta;
use gridhub::hub::Opening;
use serde_json::{Value, json};
use uuid::Uuid;

use super::world::{
    AGENCIES, Batch, Change, Coarse, Contents, Exposure, Field, Grant, HOME, Kind, Reach, Table, Test, World,
    attributes,
};
use crate::support::{CSV, TestClock, TestHub, fixture, repository};

/// Who asks in every world, and why.
pub const CALLER: &str = "asker";
pub const PURPOSE: &str = "looking";

/// Writes the contracts and policies of a world below `folder`.
pub fn write(world: &World, folder: &Path) {
    let (schemas, policies) = (folder.join("schemas"), folder.join("policies"));
    fs::create_dir_all(&schemas).unwrap();
    fs::create_dir_all(&policies).unwrap();
    let divisions = "platform.divisions.odcs.yaml";
    fs::copy(repository().join("schemas").join(divisions), schemas.join(divisions)).unwrap();
    fs::write(policies.join("schema.cedarschema"), cedar_schema(world)).unwrap();
    for table in &world.tables {
        fs::write(schemas.join(format!("{}.odcs.yaml", table.full_name())), contract(world, table)).unwrap();
    }
    fs::write(policies.join("entities.json"), entities()).unwrap();
    fs::write(policies.join("world.cedar"), policy(world)).unwrap();
}

/// Opens a hub on what [`write`] wrote, and pushes the rows.
pub async fn open(
    folder: &Path,
    world: &World,
    contents: &Contents,
    change: impl FnOnce(&mut Opening) + Send,
) -> TestHub {
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        opening.schemas = folder.join("schemas");
        opening.policies = folder.join("policies");
        // All worlds have the same keys, or every token would differ.
        fs::create_dir_all(&opening.keys).unwrap();
        for name in ["root.key", "log-signing.key"] {
            let file = opening.keys.join(name);
            fs::write(&file, [7; 32]).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        change(opening);
    })
    .await;
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let tokens = AGENCIES.map(|agency| hub.token(&format!("{agency}-uploader")));
    for (table, batches) in world.tables.iter().zip(&contents.0) {
        for batch in batches {
            let text = csv(table, batch);
            let dataset = table.full_name();
            let reply = hub.push_as(&tokens[batch.source], &dataset, Uuid::now_v7(), CSV, text.clone().into()).await;
            assert_eq!(reply.status, 201, "{dataset}: {}\n{text}", reply.text());
            let receipt = reply.json();
            assert_eq!(receipt["rows_rejected"], 0, "{dataset}: {receipt}\n{text}");
            // Rows whose order is told by a number may be revisions; nothing else is odd about any.
            let odd = |warnings: &Value| warnings.as_object().unwrap().keys().any(|kind| kind != "revision");
            assert!(!odd(&receipt["warnings"]), "{dataset}: {receipt}\n{text}");
        }
    }
    // What protected statistics rest on is published by now, however many rows came at once.
    hub.clock.step(TimeDelta::hours(25));
    hub
}

/// A batch as its sender writes it.
pub fn csv(table: &Table, batch: &Batch) -> String {
    let names: Vec<&str> = table.fields.iter().map(|field| field.name.as_str()).collect();
    let mut text = names.join(",") + "\n";
    for row in &batch.rows {
        let cells: Vec<&str> = row.cells.iter().map(|cell| cell.as_deref().unwrap_or_default()).collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

// --------------------------------------------------------------------------------- contracts

/// The contract of a table.
pub fn contract(world: &World, table: &Table) -> String {
    let mut keys = vec![("changeMode", mode(table.change).to_owned()), ("timezone", world.zone.to_owned())];
    for (key, at) in [
        ("subject", table.subject),
        ("territory", table.territory),
        ("eventTime", table.event_time),
        ("orderBy", table.order_by),
        ("opField", table.operation),
    ] {
        keys.extend(at.map(|at| (key, table.fields[at].name.clone())));
    }
    let keys: String =
        keys.iter().map(|(key, value)| format!("      - {{property: gridhub.{key}, value: \"{value}\"}}\n")).collect();
    let fields: String =
        table.fields.iter().enumerate().map(|(at, field)| property(field, table.key == Some(at))).collect();
    let (full, name, agency) = (table.full_name(), &table.name, table.agency);
    format!(
        "apiVersion: v3.1.0\nkind: DataContract\nid: {full}\nname: {name}\nversion: 1.0.0\nstatus: active\n\
         domain: {agency}\ndescription:\n  purpose: \"Invented rows.\"\nschema:\n  - name: {name}\n    \
         customProperties:\n{keys}    properties:\n{fields}"
    )
}

fn mode(change: Change) -> &'static str {
    match change {
        Change::Append => "append",
        Change::Upsert => "upsert",
        Change::Changes => "changes",
    }
}

fn property(field: &Field, is_key: bool) -> String {
    let (physical, logical) = match field.kind {
        Kind::Text | Kind::Identifier | Kind::Division => ("string", "string"),
        Kind::Small => ("int16", "integer"),
        Kind::Integer => ("int32", "integer"),
        Kind::Big => ("int64", "integer"),
        Kind::Decimal => ("decimal(8,2)", "number"),
        Kind::Double => ("double", "number"),
        Kind::Boolean => ("boolean", "boolean"),
        Kind::Date => ("date", "date"),
        Kind::Timestamp => ("timestamp", "timestamp"),
    };
    let mut text = format!(
        "      - name: \"{}\"\n        logicalType: {logical}\n        physicalType: \"{physical}\"\n        \
         required: false\n",
        field.name
    );
    if is_key {
        text.push_str("        primaryKey: true\n        primaryKeyPosition: 1\n");
    }
    if field.bounded {
        text.push_str("        logicalTypeOptions: {minimum: -1000, maximum: 1000}\n");
    }
    let mut keys = Vec::new();
    if field.kind == Kind::Identifier {
        keys.push(("identifier", "opaque".to_owned()));
        keys.push(("domain", "person".to_owned()));
    }
    if field.kind == Kind::Division {
        keys.push(("division", "any".to_owned()));
    }
    if field.free_text {
        keys.push(("freeText", "drop".to_owned()));
    }
    keys.extend(field.coarse.map(|coarse| ("generalise", format!("\"{}\"", coarse_word(coarse)))));
    if !field.bins.is_empty() {
        let bins: Vec<String> = field.bins.iter().map(|bin| format!("\"{bin}\"")).collect();
        keys.push(("bins", format!("[{}]", bins.join(", "))));
    }
    if !keys.is_empty() {
        text.push_str("        customProperties:\n");
    }
    for (key, value) in keys {
        let _ = writeln!(text, "          - {{property: gridhub.{key}, value: {value}}}");
    }
    text
}

fn coarse_word(coarse: Coarse) -> String {
    match coarse {
        Coarse::Month => "month".into(),
        Coarse::Year => "year".into(),
        Coarse::Years(width) => format!("years:{width}"),
        Coarse::Prefix(width) => format!("prefix:{width}"),
        Coarse::Band(width) => format!("band:{width}"),
    }
}

// ---------------------------------------------------------------------------------- policies

/// What the caller may get of every table, in Cedar.
pub fn policy(world: &World) -> String {
    let mut text = String::new();
    for action in ["batch:push", "rows:write"] {
        let _ = writeln!(
            text,
            "@id(\"{action}\")\npermit (principal in Role::\"uploader\", action == Action::\"{action}\", resource);\n"
        );
    }
    if world.divisions {
        for action in ["rows:read", "field:clear"] {
            grant(&mut text, "platform.divisions", action, None);
        }
    }
    for table in &world.tables {
        let name = table.full_name();
        match &table.grant {
            Grant::Nothing => {}
            Grant::Rows(reach) => grant(&mut text, &name, "rows:read", condition(table, reach)),
            Grant::Counted(reach) => grant(&mut text, &name, "rows:aggregate", condition(table, reach)),
        }
        for (action, exposure) in [
            ("field:clear", Exposure::Clear),
            ("field:generalised", Exposure::Generalised),
            ("field:token", Exposure::Token),
            ("field:aggregate", Exposure::Aggregate),
        ] {
            let fields = table.fields.iter().filter(|field| field.exposure == exposure);
            let names: Vec<String> = fields.map(|field| format!("\"{}\"", field.name)).collect();
            if !names.is_empty() {
                let condition = format!("[{}].contains(resource.name)", names.join(", "));
                grant(&mut text, &name, action, Some(condition));
            }
        }
    }
    text
}

fn grant(text: &mut String, dataset: &str, action: &str, condition: Option<String>) {
    let condition = condition.map(|condition| format!("\nwhen {{ {condition} }}")).unwrap_or_default();
    let _ = writeln!(
        text,
        "@id(\"{dataset} {action}\")\npermit (\n  principal in Role::\"asker\",\n  action == Action::\"{action}\",\n  \
         resource in Dataset::\"{dataset}\"\n){condition};\n"
    );
}

fn condition(table: &Table, reach: &Reach) -> Option<String> {
    match reach {
        Reach::All => None,
        reach => Some(written(table, reach)),
    }
}

fn written(table: &Table, reach: &Reach) -> String {
    let home = "resource has territory && resource.territory in principal.territory";
    let again = |reach: &Reach| written(table, reach);
    match reach {
        Reach::All => "true".into(),
        Reach::Home => format!("principal has territory && {home}"),
        Reach::NotHome => format!("principal has territory && !({home})"),
        Reach::From(agency) => format!("resource.source == Agency::\"{}\"", AGENCIES[*agency]),
        Reach::NotFrom(agency) => format!("resource.source != Agency::\"{}\"", AGENCIES[*agency]),
        Reach::HomeOrFrom(agency) => {
            format!("(principal has territory && {home}) || resource.source == Agency::\"{}\"", AGENCIES[*agency])
        }
        Reach::Field(at, test) => asked(&table.fields[*at].name, *test),
        Reach::Not(inner) => format!("!({})", again(inner)),
        Reach::Both(one, other) => format!("({}) && ({})", again(one), again(other)),
        Reach::Either(one, other) => format!("({}) || ({})", again(one), again(other)),
    }
}

/// What a scope asks of a field; a field that may be empty is asked for first.
fn asked(name: &str, test: Test) -> String {
    let text = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let said = match test {
        Test::Has => return format!("resource has {name}"),
        Test::Is(value) => format!("== {}", text(value)),
        Test::Like(form) => format!("like {}", text(form)),
        Test::Below(bound) => format!("< {bound}"),
        Test::AtMost(bound) => format!("<= {bound}"),
        Test::Above(bound) => format!("> {bound}"),
        Test::True => return format!("resource has {name} && resource.{name}"),
        Test::Before(day) => format!("< datetime(\"{day}\")"),
    };
    format!("resource has {name} && resource.{name} {said}")
}

/// The repository's own schema, with what this world's policies may say of rows.
pub fn cedar_schema(world: &World) -> String {
    let text = fs::read_to_string(repository().join("policies/schema.cedarschema")).unwrap();
    let ours = "  source: Agency,\n  territory?: Division,\n";
    assert_eq!(text.matches(ours).count(), 1, "entity Row of policies/schema.cedarschema is written otherwise now");
    let declared = attributes(&world.tables);
    let declared: String = declared.iter().map(|(name, kind)| format!("  {name}?: {kind},\n")).collect();
    text.replace(ours, &format!("{ours}{declared}"))
}

fn entities() -> String {
    let entity = |kind: &str, id: &str, attributes: serde_json::Value, parents: &[(&str, &str)]| {
        let parents: Vec<_> = parents.iter().map(|(kind, id)| json!({"type": kind, "id": id})).collect();
        json!({"uid": {"type": kind, "id": id}, "attrs": attributes, "parents": parents})
    };
    let mut all = Vec::new();
    for agency in AGENCIES.into_iter().chain(["bureau", "platform"]) {
        all.push(entity("Agency", agency, json!({"kind": "government"}), &[]));
    }
    for role in ["asker", "uploader"] {
        all.push(entity("Role", role, json!({}), &[]));
    }
    for agency in AGENCIES.into_iter().chain(["platform"]) {
        let caller = format!("{agency}-uploader");
        let parents = [("Agency", agency), ("Role", "uploader")];
        all.push(entity("Caller", &caller, json!({"purposes": ["sending"]}), &parents));
    }
    let attributes = json!({"territory": {"__entity": {"type": "Division", "id": HOME}}, "purposes": [PURPOSE]});
    all.push(entity("Caller", CALLER, attributes, &[("Agency", "bureau"), ("Role", "asker")]));
    serde_json::Value::from(all).to_string()
}
