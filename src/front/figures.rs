//! What the hub counts of itself, for those who run it, in the form of Prometheus.
//!
//! Figures have no identifiers: labels are words of the hub itself, never a path, a caller, a dataset or what somebody
//! typed. Rows and bytes of answers are not counted, since from their sums the answers of others could be told.

use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{
    error::{Error, Result},
    hub::Received,
};

/// Upper ends of what durations are sorted into, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// A recorder with the buckets of this hub, not yet installed.
pub fn builder() -> PrometheusBuilder {
    // It fails for empty buckets alone.
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .unwrap_or_else(|_| PrometheusBuilder::new())
}

/// Begins to count in this process. `None` where something counts already.
pub fn install() -> Option<PrometheusHandle> {
    let handle = builder().install_recorder().ok()?;
    describe();
    Some(handle)
}

/// Says what each figure means.
pub fn describe() {
    metrics::describe_counter!(
        "gridhub_http_requests_total",
        "requests over HTTP by method, route and status; `none` for paths that there are not"
    );
    metrics::describe_histogram!(
        "gridhub_http_seconds",
        Unit::Seconds,
        "time until the head of a response over HTTP, by method and route"
    );
    metrics::describe_counter!(
        "gridhub_questions_total",
        "questions by door and outcome: `answered`, or the slug of why not"
    );
    metrics::describe_histogram!("gridhub_question_seconds", Unit::Seconds, "time until an answer, by door");
    metrics::describe_counter!(
        "gridhub_uploads_total",
        "whole batches by outcome: the status of the receipt, `again`, or the slug of why not"
    );
    metrics::describe_gauge!("gridhub_connections", "open connections by door");
    metrics::describe_counter!(
        "gridhub_connections_turned_away_total",
        "connections by door that were closed at once, since their address had as many as it may have"
    );
    metrics::describe_gauge!("gridhub_log_entries", "entries of the access log");
}

/// Counts a question that came through `door`.
pub fn asked<T>(door: &'static str, outcome: &Result<T>, took: Duration) {
    let word = outcome.as_ref().map_or_else(Error::slug, |_| "answered");
    metrics::counter!("gridhub_questions_total", "door" => door, "outcome" => word).increment(1);
    metrics::histogram!("gridhub_question_seconds", "door" => door).record(took.as_secs_f64());
}

/// Counts a batch that came whole.
pub fn uploaded(outcome: &Result<Received>) {
    let word = match outcome {
        Ok(received) if received.again => "again",
        Ok(received) => received.receipt.status.word(),
        Err(Error::ContractViolation { receipt: Some(receipt), .. }) => receipt.status.word(),
        Err(error) => error.slug(),
    };
    metrics::counter!("gridhub_uploads_total", "outcome" => word).increment(1);
}

/// Counts a request over HTTP: `route` is the template of its path, as the router has it.
pub(super) fn requested(method: &'static str, route: &str, status: u16, took: Duration) {
    let route = route.to_owned();
    metrics::counter!(
        "gridhub_http_requests_total", "method" => method, "route" => route.clone(), "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!("gridhub_http_seconds", "method" => method, "route" => route).record(took.as_secs_f64());
}

/// Counts a connection to `door` that was closed at once, since its address had enough.
pub(super) fn turned_away(door: &'static str) {
    metrics::counter!("gridhub_connections_turned_away_total", "door" => door).increment(1);
}

/// Takes down how long the access log is, which its checkpoint tells everybody.
pub(super) fn logged(checkpoint: &str) {
    if let Some(entries) = checkpoint.lines().nth(1).and_then(|size| size.parse::<u32>().ok()) {
        metrics::gauge!("gridhub_log_entries").set(entries);
    }
}

/// An open connection, counted until it is dropped.
#[derive(Debug)]
pub struct Connection(&'static str);

impl Connection {
    /// A connection to `door`.
    pub fn new(door: &'static str) -> Self {
        metrics::gauge!("gridhub_connections", "door" => door).increment(1.0);
        Self(door)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!("gridhub_connections", "door" => self.0).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_help_and_buckets() {
        let recorder = builder().build_recorder();
        let text = metrics::with_local_recorder(&recorder, || {
            describe();
            asked("http", &Ok(()), Duration::from_millis(3));
            asked::<()>("postgres", &Err(Error::Busy), Duration::from_secs(2));
            uploaded(&Err(Error::BatchConflict));
            logged("gridhub\n42\nroot\n");
            let open = Connection::new("flight");
            let text = recorder.handle().render();
            drop(open);
            text + &recorder.handle().render()
        });
        for line in [
            "# HELP gridhub_questions_total questions by door",
            "gridhub_questions_total{door=\"http\",outcome=\"answered\"} 1",
            "gridhub_questions_total{door=\"postgres\",outcome=\"busy\"} 1",
            "gridhub_question_seconds_bucket{door=\"http\",le=\"0.0025\"} 0",
            "gridhub_question_seconds_bucket{door=\"http\",le=\"0.005\"} 1",
            "gridhub_uploads_total{outcome=\"batch-conflict\"} 1",
            "gridhub_log_entries 42",
            "gridhub_connections{door=\"flight\"} 1",
            "gridhub_connections{door=\"flight\"} 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
