//! Two hubs with the same keys and one difference, asked the same questions.

use std::os::unix::fs::PermissionsExt;

use gridhub::hub::Opening;

use crate::support::{CSV, TestClock, TestHub, fixture};

/// An empty hub whose keys are those of every other world, or every token would differ.
pub async fn keyed(change: impl FnOnce(&mut Opening)) -> TestHub {
    TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        std::fs::create_dir_all(&opening.keys).unwrap();
        for name in ["root.key", "log-signing.key"] {
            let file = opening.keys.join(name);
            std::fs::write(&file, [7; 32]).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        change(opening);
    })
    .await
}

/// A city whose fixtures went through `change` on their way.
pub async fn world(change: impl Fn(&str, String) -> String) -> TestHub {
    let hub = keyed(|_| {}).await;
    for (caller, dataset) in [
        ("platform-uploader", "platform.divisions"),
        ("community-uploader", "community.residents"),
        ("community-uploader", "community.visits"),
        ("hospital-uploader", "hospital.tests"),
        ("cdc-uploader", "cdc.cases"),
        ("pharmacy-uploader", "pharmacy.sales"),
    ] {
        let text = String::from_utf8(fixture(&format!("{dataset}.csv"))).unwrap();
        let reply = hub.push(caller, dataset, CSV, change(dataset, text).into_bytes()).await;
        assert_eq!(reply.status, 201, "{dataset}: {}", reply.text());
    }
    hub
}

/// Everything of a reply but ids, log positions and time.
pub async fn transcript<S: AsRef<str>>(hub: &TestHub, caller: &str, purpose: &str, questions: &[S]) -> Vec<String> {
    let token = hub.token(caller);
    let mut told = Vec::new();
    for sql in questions {
        let sql = sql.as_ref();
        let mut body = hub.ask_as(&token, purpose, sql, "application/json").await.json();
        for member in ["query_id", "log_index"] {
            body.as_object_mut().unwrap().shift_remove(member);
        }
        told.push(format!("{sql}\n{body}"));
    }
    let catalogue = hub.get(&token, &format!("/v1/datasets?purpose={purpose}")).await;
    told.push(catalogue.text());
    told
}

/// Asks both worlds the same and expects the same.
pub async fn same<S: AsRef<str>>(one: &TestHub, other: &TestHub, caller: &str, purpose: &str, questions: &[S]) {
    let one = transcript(one, caller, purpose, questions).await;
    let other = transcript(other, caller, purpose, questions).await;
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one, other);
    }
}

/// Lines of a CSV text, the header kept, the rest through `change`.
pub fn lines(text: &str, change: impl Fn(Vec<&str>) -> Option<Vec<String>>) -> String {
    let mut lines = text.lines();
    let mut out = vec![lines.next().unwrap().to_owned()];
    out.extend(lines.filter_map(|line| Some(change(line.split(',').collect())?.join(","))));
    out.join("\n") + "\n"
}

pub fn owned(cells: Vec<&str>) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

/// The rows of the community that the grid worker does not look after.
pub const ELSEWHERE: &str = "420191001002001";

/// Without the rows of that community.
pub fn without_elsewhere(text: &str) -> String {
    lines(text, |cells| (!cells.contains(&ELSEWHERE)).then(|| owned(cells)))
}
