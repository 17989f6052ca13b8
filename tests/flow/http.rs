//! The HTTP door itself: how requests are named, counted and told of, what clients may keep, and that odd input is
//! answered as the interface says.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Method, Request},
};
use bytes::Bytes;
use futures::stream;
use gridhub::front::{
    figures,
    http::{self, Options},
    listen::Peer,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use tracing_subscriber::fmt::MakeWriter;
use uuid::Uuid;

use crate::support::{CSV, Reply, TestClock, TestHub, changed, fixture};

/// What must be in no log and no figure.
const CANARIES: [&str; 6] = ["canarypath", "canaryquery", "canarybody", "canaryheader", "canaryliteral", "14100099887"];

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// By what a response may differ, from all lines of `Vary`.
fn varies(reply: &Reply) -> String {
    let lines = reply.headers.get_all("vary").iter().map(|line| line.to_str().unwrap());
    lines.collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_ids() {
    let hub = TestHub::start().await;
    let id_of = |reply: &Reply| Uuid::parse_str(&reply.header("gridhub-request-id")).unwrap();
    let first = hub.send_and_keep_id(request("GET", "/nowhere", &[], Body::empty())).await;
    let second = hub.send_and_keep_id(request("GET", "/nowhere", &[], Body::empty())).await;
    assert_ne!(id_of(&first), id_of(&second));
    assert_eq!(first.json()["instance"], format!("urn:uuid:{}", id_of(&first)));
    let given = "0190f5a2-7b3c-7def-8abc-0123456789ab";
    let ours = hub.send_and_keep_id(request("GET", "/healthz", &[("x-request-id", given)], Body::empty())).await;
    assert_eq!(ours.header("gridhub-request-id"), given);
    let other = "42019119900101123X";
    let ours = hub.send_and_keep_id(request("GET", "/nowhere", &[("x-request-id", other)], Body::empty())).await;
    assert_eq!(id_of(&ours).get_version_num(), 7);
    assert!(!ours.text().contains(other));
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_say_how_they_are_to_be_treated() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let answer = hub.ask_as(&token, "epidemiology", "SELECT count(*) FROM cases", "").await;
    for reply in [&answer, &hub.get("", "/nowhere").await, &hub.get(&token, "/v1/datasets").await] {
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("cache-control"), "no-store");
        assert_eq!(reply.header("strict-transport-security"), "", "this was no TLS");
    }
    assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "a short answer says how long it is");

    let wrong = hub.get(&token, "/v1/sql").await;
    assert_eq!((wrong.status, wrong.header("allow").as_str()), (405, "POST"));
    let wrong = hub.send(request("DELETE", "/v1/datasets", &[], Body::empty())).await;
    assert_eq!((wrong.status, wrong.header("allow").as_str()), (405, "GET,HEAD"));
    let head = hub.send(request("HEAD", "/v1/log/checkpoint", &[], Body::empty())).await;
    let whole = hub.get("", "/v1/log/checkpoint").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), whole.body.len().to_string());
    assert_eq!(whole.header("cache-control"), "no-cache");
    let partial = hub.get("", "/v1/log/tile/0/000.p/1").await;
    assert_eq!((partial.status, partial.header("cache-control").as_str()), (200, "no-cache"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tile_never_changes() {
    let hub = TestHub::start().await;
    let officer = hub.token("compliance-officer");
    while hub.get("", "/v1/log/tile/0/000").await.status != 200 {
        hub.get(&officer, "/v1/log/entries?count=1").await;
    }
    let tile = hub.get("", "/v1/log/tile/0/000").await;
    assert_eq!(tile.header("cache-control"), "public, max-age=31536000, immutable");
    assert_eq!(tile.body.len(), 256 * 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_is_known_is_not_sent_again() {
    let hub = TestHub::start().await;
    let analyst = bearer(&hub.token("health-analyst"));
    let get = async |path: &str, token: &str, known: &str| {
        hub.send(request("GET", path, &[("authorization", token), ("if-none-match", known)], Body::empty())).await
    };
    for path in ["/v1/datasets?purpose=epidemiology", "/v1/datasets/cdc.cases?purpose=epidemiology"] {
        let whole = get(path, &analyst, "").await;
        let tag = whole.header("etag");
        assert_eq!((whole.status, whole.header("cache-control").as_str()), (200, "private, no-cache"));
        assert!(varies(&whole).contains("authorization"));
        let known = get(path, &analyst, &tag).await;
        assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, tag.clone()));
        assert!(varies(&known).contains("accept-encoding"), "as the whole one does");
        assert_eq!(get(path, &analyst, "W/\"something else\"").await.status, 200);
        let other = bearer(&hub.token("cdc-epidemiologist"));
        assert_eq!(get(path, &other, &tag).await.status, 200, "somebody else's catalogue is another");
    }
    let absent = get("/v1/datasets/cdc.nothing?purpose=epidemiology", &analyst, "*").await;
    assert_eq!(absent.problem(), "404 not-found: not found", "what is not there is not known");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_compressed_for_those_who_can_read_it() {
    let hub = TestHub::with_city().await;
    let token = bearer(&hub.token("health-analyst"));
    let get = async |path: &str, coding: &str| {
        hub.send(request("GET", path, &[("authorization", token.as_str()), ("accept-encoding", coding)], Body::empty()))
            .await
    };
    let catalogue = "/v1/datasets?purpose=epidemiology";
    let plain = get(catalogue, "identity").await;
    assert_eq!(plain.header("content-encoding"), "");
    assert!(varies(&plain).contains("accept-encoding"));
    for (coding, magic) in [("gzip", &[0x1f, 0x8b][..]), ("zstd", &[0x28, 0xb5, 0x2f, 0xfd][..])] {
        let packed = get(catalogue, coding).await;
        assert_eq!(packed.header("content-encoding"), coding);
        assert!(packed.body.starts_with(magic) && packed.body.len() < plain.body.len(), "{coding}");
        assert_eq!(get("/healthz", coding).await.header("content-encoding"), "", "too little to be worth it");
    }
    let question = json!({ "sql": "SELECT * FROM divisions", "purpose": "epidemiology" }).to_string();
    let file = hub
        .send(request(
            "POST",
            "/v1/sql",
            &[
                ("authorization", token.as_str()),
                ("content-type", "application/json"),
                ("accept", "application/vnd.apache.parquet"),
                ("accept-encoding", "gzip, zstd"),
            ],
            question,
        ))
        .await;
    assert!(file.body.len() > 1 << 10 && file.body.starts_with(b"PAR1"));
    assert_eq!(file.header("content-encoding"), "", "Parquet is compressed inside");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_does_not_come_to_its_end_is_not_waited_for() {
    let hub = TestHub::start().await;
    let (analyst, officer) = (bearer(&hub.token("health-analyst")), bearer(&hub.token("compliance-officer")));
    let options = Options { silence: Duration::from_millis(100), ..Options::default() };
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), options);
    for (path, token) in [("/v1/sql", &analyst), ("/v1/explain", &analyst), ("/v1/erasures", &officer)] {
        let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
        let silent = Body::from_stream(stream::pending::<Result<Bytes, io::Error>>());
        let asked = router.clone().oneshot(request("POST", path, &headers, silent));
        let reply = tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap().unwrap();
        assert_eq!(reply.status(), 408, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_question_of_who_went_away_is_given_up() {
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.throttle.at_once = 1).await;
    hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    let token = hub.token("health-analyst");
    let endless = "WITH RECURSIVE k AS (SELECT CAST(level AS BIGINT) AS n FROM divisions \
                   UNION ALL SELECT n + 1 FROM k WHERE n < 1000000000) SELECT max(n) FROM k";
    let asked = hub.ask_as(&token, "epidemiology", endless, "");
    assert!(tokio::time::timeout(Duration::from_millis(500), asked).await.is_err(), "it came to an end");
    // The caller's one turn is free again, long before the hub's own deadline.
    let next = hub.ask_as(&token, "epidemiology", "SELECT count(*) FROM divisions", "").await;
    assert_eq!(next.status, 200, "{}", next.text());
}

/// Sends what somebody's mistakes and a fuzzer send, and returns each request with its reply.
async fn odd_conversation(hub: &TestHub) -> Vec<(String, Method, &'static str, Reply)> {
    let token = bearer(&hub.token("health-analyst"));
    let officer = bearer(&hub.token("compliance-officer"));
    let uploader = bearer(&hub.token("community-uploader"));
    let json = "application/json";
    let batch = "/v1/datasets/community.visits/batches";
    let id = Uuid::now_v7();
    let mut told = Vec::new();
    let mut say = async |template: &'static str, token: &str, method: &str, path: &str, kind: &str, body: Vec<u8>| {
        let mut headers = vec![("authorization", token), ("tus-resumable", "1.0.0")];
        if !kind.is_empty() {
            headers.push(("content-type", kind));
        }
        let reply = hub.send_and_keep_id(request(method, path, &headers, body)).await;
        told.push((format!("{method} {path} {kind}"), Method::from_bytes(method.as_bytes()).unwrap(), template, reply));
    };
    for path in ["/v1/sql", "/v1/explain"] {
        for body in [
            &b""[..],
            b"null",
            b"[]",
            b"\"SELECT 1\"",
            b"{",
            b"{\"sql\": 1}",
            b"{\"sql\": \"SELECT 1\", \"purpose\": 7}",
            b"{\"sql\": \"SELECT 1\", \"more\": 1}",
            b"{\"sql\": \"SELECT 1\", \"sql\": \"SELECT 2\"}",
            b"{\"sql\": \"SELECT $1\", \"purpose\": \"epidemiology\", \"params\": [1e999]}",
            b"{\"sql\": \"SELECT $1\", \"purpose\": \"epidemiology\", \"params\": [99999999999999999999999]}",
            b"{\"sql\": \"SELECT $1\", \"purpose\": \"epidemiology\", \"params\": [[1]]}",
            b"{\"sql\": \"SELECT $1\", \"purpose\": \"epidemiology\", \"params\": []}",
            b"{\"sql\": \"SELECT '\\u0000'\", \"purpose\": \"epidemiology\"}",
            b"{\"sql\": \"\\u0000\", \"purpose\": \"\\u0000\"}",
            b"{\"sql\": \"\", \"purpose\": \"\"}",
            b"{\"sql\": \"SELECT 1\", \"small_cells\": \"none\"}",
            b"\xff\xfe",
        ] {
            let template = if path == "/v1/sql" { "/v1/sql" } else { "/v1/explain" };
            say(template, &token, "POST", path, json, body.to_vec()).await;
        }
    }
    say("/v1/sql", &token, "POST", "/v1/sql", "", b"{\"sql\": \"SELECT 1\"}".to_vec()).await;
    say("/v1/sql", &token, "POST", "/v1/sql", "text/plain", b"SELECT 1".to_vec()).await;
    say("/v1/sql", "", "POST", "/v1/sql", json, b"{\"sql\": \"SELECT 1\"}".to_vec()).await;
    say("/v1/sql", "Bearer \t", "POST", "/v1/sql", json, Vec::new()).await;
    for query in ["?purpose=%ff", "?purpose=%00", "?purpose=a&purpose=b", "?purpose=", "?%", "?=", "?&&"] {
        say("/v1/datasets", &token, "GET", &format!("/v1/datasets{query}"), "", Vec::new()).await;
    }
    for name in ["%ff", "%00", "a%2fb", "..", "%e4%b8%ad.%e6%96%87", "cdc.cases%20"] {
        let path = format!("/v1/datasets/{name}?purpose=epidemiology");
        say("/v1/datasets/{dataset}", &token, "GET", &path, "", Vec::new()).await;
    }
    for query in ["?from=-1", "?from=18446744073709551615", "?from=x", "?count=-1", "?count=99999999999999999999"] {
        say("/v1/log/entries", &officer, "GET", &format!("/v1/log/entries{query}"), "", Vec::new()).await;
    }
    for tile in ["000.p/0", "000.p/256", "999", "x999/x999/x999/x999/x999/x999/x999/999", "%ff", "-1", "000/../000"] {
        say("/v1/log/tile/0/{tile}", "", "GET", &format!("/v1/log/tile/0/{tile}"), "", Vec::new()).await;
    }
    let of_a_batch = "/v1/datasets/{dataset}/batches/{batch}";
    for (path, kind) in [
        (format!("{batch}/7"), CSV),
        (format!("{batch}/%ff"), CSV),
        (format!("{batch}/{id}?dry_run=maybe"), CSV),
        (format!("{batch}/{id}?dry=true"), CSV),
        (format!("{batch}/{id}"), ""),
        (format!("{batch}/{id}"), "image/png"),
        (format!("{batch}/{id}"), CSV),
        (format!("/v1/datasets/no.thing/batches/{id}"), CSV),
    ] {
        say(of_a_batch, &uploader, "PUT", &path, kind, Vec::new()).await;
        say(of_a_batch, &uploader, "GET", &path, "", Vec::new()).await;
    }
    for path in ["/v1/uploads/7", "/v1/uploads/%ff", "/v1/uploads/00000000-0000-0000-0000-000000000000"] {
        for method in ["PATCH", "DELETE", "POST"] {
            say("/v1/uploads/{upload}", &uploader, method, path, "application/offset+octet-stream", Vec::new()).await;
        }
    }
    say("/v1/uploads", &uploader, "POST", "/v1/uploads", "", Vec::new()).await;
    for body in
        [&b""[..], b"{}", b"{\"identifiers\": []}", b"{\"identifiers\": [{\"kind\": \"shoe\", \"value\": \"\"}]}"]
    {
        say("/v1/erasures", &officer, "POST", "/v1/erasures", json, body.to_vec()).await;
    }
    say("/v1/erasures/{id}", &officer, "GET", "/v1/erasures/7", "", Vec::new()).await;
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_input_is_answered_as_the_interface_says() {
    let hub = TestHub::with_city().await;
    let interface = hub.get("", "/openapi.json").await.json();
    for (asked, method, template, reply) in odd_conversation(&hub).await {
        assert!(reply.status < 500, "{asked}: {}", String::from_utf8_lossy(&reply.body));
        let operation = &interface["paths"][template][method.as_str().to_lowercase()];
        assert!(operation.is_object(), "{asked} is not described");
        let described = &operation["responses"][reply.status.to_string()];
        assert!(described.is_object(), "{asked}: {} is not described", reply.status);
        let kind = reply.header("content-type");
        if !reply.body.is_empty() {
            let kind = kind.split(';').next().unwrap();
            assert!(described["content"][kind].is_object(), "{asked}: {kind} is not described");
        }
        if reply.status >= 400 {
            assert_eq!(kind, "application/problem+json", "{asked}");
            assert_has_members(&interface, "Problem", &reply.json());
        }
    }
}

/// Whether a document has what its schema requires, and nothing that the schema does not know.
fn assert_has_members(interface: &Value, schema: &str, document: &Value) {
    let schema = &interface["components"]["schemas"][schema];
    let members = document.as_object().unwrap();
    for required in schema["required"].as_array().unwrap() {
        assert!(members.contains_key(required.as_str().unwrap()), "{required} is missing in {document}");
    }
    for name in members.keys() {
        assert!(schema["properties"][name].is_object(), "{name} is not in {schema}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_interface_is_described_as_it_is() {
    let hub = TestHub::with_city().await;
    let interface = hub.get("", "/openapi.json").await.json();
    assert_eq!((&interface["openapi"], &interface["info"]["title"]), (&json!("3.1.0"), &json!("gridhub")));
    assert_eq!(interface["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    assert_eq!(interface["security"], json!([{ "token": [] }]));
    let operations = interface["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
    for (method, operation) in operations {
        assert!(operation["summary"].is_string() && operation["responses"]["405"].is_object(), "{method} {operation}");
    }

    let has = |schema: &str, document: &Value| assert_has_members(&interface, schema, document);
    let analyst = hub.token("health-analyst");
    let sql = "SELECT substr(grid_code, 1, 9) AS street, avg(temperature) AS mean FROM visits GROUP BY 1";
    let answer = hub.ask_as(&analyst, "epidemiology", sql, "").await.json();
    has("Answer", &answer);
    has("ColumnExposure", &answer["columns"][1]);
    has("Protection", &answer["protection"]);
    let question = json!({ "sql": "SELECT severity FROM cases", "purpose": "epidemiology" });
    let refused = hub.post(&analyst, "/v1/explain", &question, "").await.json();
    has("Explained", &refused);
    has("Refusal", &refused["refusal"]);
    let catalogue = hub.get(&analyst, "/v1/datasets?purpose=epidemiology").await.json();
    has("Catalogue", &catalogue);
    has("Listed", &catalogue["datasets"][0]);
    has("ListedField", &catalogue["datasets"][0]["fields"][0]);
    let pushed = hub.push("community-uploader", "community.visits", CSV, fixture("community.visits.csv")).await;
    has("Receipt", &pushed.json());
    let officer = hub.token("compliance-officer");
    has("LogEntries", &hub.get(&officer, "/v1/log/entries").await.json());
}

/// Says canaries wherever something can be said.
async fn conversation_with_canaries(hub: &TestHub, router: &axum::Router) {
    let token = bearer(&hub.token("health-analyst"));
    let uploader = bearer(&hub.token("community-uploader"));
    let canary = CANARIES[5];
    let asked = |sql: &str| json!({ "sql": sql, "purpose": "epidemiology" }).to_string();
    let id = Uuid::now_v7();
    let header = ("x-request-id", "canaryheader");
    for (token, method, path, kind, body) in [
        (
            &token,
            "POST",
            "/v1/sql",
            "application/json",
            asked("SELECT count(*) FROM divisions WHERE name = 'canaryliteral'"),
        ),
        (&token, "POST", "/v1/sql", "application/json", asked(&format!("SELECT * FROM t{canary}"))),
        (&token, "POST", "/v1/sql", "application/json", asked("SELECT canaryliteral FROM")),
        (&token, "POST", "/v1/explain", "application/json", asked("SELECT canaryliteral FROM cases")),
        (&token, "POST", "/v1/sql", "application/json", "canarybody".to_owned()),
        (&token, "GET", "/v1/datasets/canarypath?purpose=canaryquery", "canaryheader", String::new()),
        (&token, "GET", "/v1/datasets?purpose=epidemiology&x=canaryquery", "canaryheader", String::new()),
        (&token, "GET", "/canarypath/14100099887?canaryquery", "canaryheader", "canarybody".to_owned()),
        (&token, "CANARYPATH", "/v1/datasets", "canaryheader", String::new()),
        (
            &uploader,
            "PUT",
            format!("/v1/datasets/community.visits/batches/{id}").as_str(),
            CSV,
            format!("canarybody\n{canary}\n"),
        ),
        (&uploader, "PUT", "/v1/datasets/canarypath.x/batches/canarypath", CSV, "canarybody".to_owned()),
    ] {
        let headers = [("authorization", token.as_str()), ("content-type", kind), header, ("user-agent", canary)];
        let response = router.clone().oneshot(request(method, path, &headers, body)).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_name_nobody() {
    let hub = TestHub::with_city().await;
    let recorder = figures::builder().build_recorder();
    let counting = metrics::set_default_local_recorder(&recorder);
    figures::describe();
    let options = Options { metrics: Some(recorder.handle()), ..Options::default() };
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), options);
    conversation_with_canaries(&hub, &router).await;
    let response = router.oneshot(request("GET", "/metrics", &[], Body::empty())).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    drop(counting);
    let text = String::from_utf8(body.to_vec()).unwrap();
    for line in [
        "# HELP gridhub_http_requests_total",
        "gridhub_http_requests_total{method=\"POST\",route=\"/v1/sql\",status=\"200\"} 1",
        "gridhub_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
        "gridhub_http_requests_total{method=\"other\",route=\"/v1/datasets\",status=\"405\"} 1",
        "gridhub_questions_total{door=\"http\",outcome=\"answered\"} 1",
        "gridhub_questions_total{door=\"http\",outcome=\"unknown-table\"} 1",
        "gridhub_uploads_total{outcome=\"contract-violation\"} 1",
        "gridhub_question_seconds_count{door=\"http\"}",
        "gridhub_log_entries ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let told = text.to_lowercase();
    let callers = ["health-analyst", "community-uploader", "health_bureau", "community.visits", "ghub_"];
    for word in CANARIES.iter().chain(&callers) {
        assert!(!told.contains(word), "{word}\n{text}");
    }
}

/// Where a log is written in a test.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_the_process_repeats_nothing() {
    let hub = TestHub::with_city().await;
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), Options::default());
    let lines = Lines::default();
    let subscriber =
        tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE).with_writer(lines.clone()).finish();
    let listening = tracing::subscriber::set_default(subscriber);
    conversation_with_canaries(&hub, &router).await;
    drop(listening);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let requests: Vec<_> = events.iter().filter(|event| event["target"] == "gridhub::http").collect();
    assert_eq!(requests.len(), 11, "{text}");
    let first = requests[0];
    let fields = &first["fields"];
    assert_eq!(
        json!([first["level"], fields["method"], fields["route"], fields["status"], fields["caller"]]),
        json!(["INFO", "POST", "/v1/sql", 200, "health-analyst"])
    );
    assert!(fields["milliseconds"].is_u64());
    assert!(Uuid::parse_str(first["span"]["id"].as_str().unwrap()).is_ok());
    assert_eq!(requests[1]["fields"]["slug"], "unknown-table");
    let told = text.to_lowercase();
    for word in CANARIES.iter().chain(&["ghub_"]) {
        assert!(!told.contains(word), "{word}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_the_process_knows_who_comes_by_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let place = r#"{"type": "Caller", "id": "platform-uploader"}, "attrs": {"#;
    let policies = changed(folder.path(), "policies", "entities.json", |text| {
        assert!(text.contains(place));
        text.replace(place, &format!(r#"{place}"certificates": ["dns:uploader.example"], "#))
    });
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.policies = policies).await;
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), Options::default());
    let made = rcgen::generate_simple_self_signed(vec!["uploader.example".to_owned()]).unwrap();
    let certificate = Some(made.cert.der().clone());
    let peer = Peer { address: "127.0.0.1:9".parse().unwrap(), secure: true, certificate };
    let mut request = request("GET", "/v1/datasets", &[], Body::empty());
    request.extensions_mut().insert(peer);
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
    let listening = tracing::subscriber::set_default(subscriber);
    assert_eq!(router.oneshot(request).await.unwrap().status(), 200);
    drop(listening);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let line = text.lines().find(|line| line.contains("gridhub::http")).unwrap_or_default();
    assert!(line.contains(r#""caller":"platform-uploader""#), "{text}");
    assert!(!text.contains("uploader.example"), "{text}");
}
