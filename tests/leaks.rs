//! Leaks that others reported of their systems, each tried on the hub: a refusal, or two answers that must be
//! equal. Names and numbers are those of the catalogue of leaks, tables A, B and D.

mod doors;
mod history;
mod masks;
mod planner;

use std::path::Path;

use crate::support::Reply;

/// The kind of a refusal: its slug, and its rule where there is one.
fn refusal(reply: &Reply) -> String {
    assert!(reply.status >= 400, "this was answered: {}", String::from_utf8_lossy(&reply.body));
    let body = reply.json();
    let slug = body["type"].as_str().unwrap().rsplit('/').next().unwrap();
    match body["rule"].as_str() {
        Some(rule) => format!("{slug} {rule}"),
        None => slug.to_owned(),
    }
}

/// A reply without what it repeats of the question, which stands in backticks.
fn shape(reply: &Reply) -> (u16, String) {
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let parts: Vec<_> = text.split('`').step_by(2).collect();
    (reply.status, parts.join("`…`"))
}

/// Everything a reply says, headers included.
fn whole(reply: &Reply) -> String {
    format!("{:?}\n{}", reply.headers, String::from_utf8_lossy(&reply.body))
}

/// Every file below a folder with its size, sorted.
fn listing(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => found.push((path.display().to_string(), std::fs::metadata(&path).unwrap().len())),
            }
        }
    }
    found.sort();
    found
}

/// Whether a file below the folder holds the text.
fn holds(folder: &Path, text: &str) -> bool {
    listing(folder).iter().any(|(file, _)| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}
