//! When a reply to a protected question goes out, where a hub pads replies. Knows no clock; the hub waits.
//!
//! How long a protected aggregate takes follows rows that its caller must not see. Held back to an edge, a reply
//! tells by its time which edge it was and no more: one of eleven within a minute, so less than 3.5 bits a
//! question (bucketing: Köpf and Dürmuth 2009). Assumes that the caller sees nothing but its own replies; what
//! queries of others feel of the load is not hidden, and writing the reply out takes as long as it is large.

use std::time::Duration;

/// The first edge; each next one is twice as late.
const FIRST: Duration = Duration::from_millis(64);

/// How long after its question a reply goes out that was ready after `elapsed`: the first of 64, 128, 256, …
/// milliseconds that is not over yet.
pub fn edge(elapsed: Duration) -> Duration {
    let mut edge = FIRST;
    while edge < elapsed {
        edge = edge.saturating_mul(2);
    }
    edge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_wait_for_the_next_edge() {
        let edge_of = |micros: u64| edge(Duration::from_micros(micros)).as_micros();
        assert_eq!(edge_of(0), 64_000);
        assert_eq!(edge_of(63_999), 64_000);
        assert_eq!(edge_of(64_000), 64_000);
        assert_eq!(edge_of(64_001), 128_000);
        assert_eq!(edge_of(128_000), 128_000);
        assert_eq!(edge_of(200_000), 256_000);
        assert_eq!(edge_of(60_000_000), 65_536_000);
    }

    #[test]
    fn edges_are_few_and_never_before_the_reply() {
        let edges: std::collections::BTreeSet<Duration> = (0..60_000)
            .map(Duration::from_millis)
            .map(|elapsed| {
                let edge = edge(elapsed);
                assert!(elapsed <= edge && (edge == FIRST || edge < 2 * elapsed), "{elapsed:?} waits until {edge:?}");
                edge
            })
            .collect();
        assert_eq!(edges.len(), 11);
        assert_eq!(edge(Duration::MAX), Duration::MAX);
    }
}
