//! Publication epochs: which version of a table protected statistics read.
//!
//! They read the newest *published* version, so that nobody can ask for the same number before and after
//! one person's change and subtract: several people change between two versions that are ever read, or a
//! day passes. It knows nothing of questions, nor where tables lie: what is published depends on commits and
//! on the time alone, and not on who asks when.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use crate::dataset::layout::WIDTH;

/// How many distinct subjects change between two published versions, unless [`LONGEST`] passes first.
pub const SUBJECTS: usize = 10;

/// How long a change stays unpublished at most.
pub const LONGEST: TimeDelta = TimeDelta::hours(24);

/// What is published of one table, and what waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// The published version; none while nothing ever was.
    pub version: Option<u64>,
    /// The newest version whose changes were counted.
    pub counted: u64,
    /// When the oldest unpublished change was committed.
    pub since: Option<DateTime<Utc>>,
    /// The subjects that changed since the published version, as keyed digests; fewer than [`SUBJECTS`].
    /// A record that goes from one subject to another counts for the later one: too few are counted
    /// rather than too many.
    pub pending: BTreeSet<[u8; WIDTH]>,
}

/// What is published of a table, what waits, and how many rows it has: a log of the table that says otherwise at the
/// next start lost some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// What is published, and what waits.
    pub publication: Publication,
    /// The rows of the version counted last.
    pub rows: u64,
}

impl Publication {
    /// Counts the subjects that changed in a version, and publishes it where they are enough.
    pub fn committed(&mut self, version: u64, subjects: impl IntoIterator<Item = [u8; WIDTH]>, now: DateTime<Utc>) {
        // Whether somebody asked between the day's end and this commit makes no difference.
        self.publish_due(now);
        self.counted = version;
        self.pending.extend(subjects);
        if self.pending.len() >= SUBJECTS {
            self.publish(version);
        } else if !self.pending.is_empty() {
            self.since = self.since.or(Some(now));
        }
    }

    /// Whether a change has waited long enough to be published however few changed with it.
    pub fn due(&self, now: DateTime<Utc>) -> bool {
        self.since.is_some_and(|since| now.signed_duration_since(since) >= LONGEST)
    }

    /// Publishes the newest version where a change in it is due. This need not be kept: what is kept is
    /// enough to find it again.
    pub fn publish_due(&mut self, now: DateTime<Utc>) {
        if self.due(now) {
            self.publish(self.counted);
        }
    }

    /// Takes in a version with the same rows as the one before: it is published where that one is, so that
    /// files which only that one needs can go.
    pub fn laid_otherwise(&mut self, version: u64) {
        if self.version == Some(self.counted) {
            self.version = Some(version);
        }
        self.counted = version;
    }

    /// Publishes a version; nothing waits then.
    pub fn publish(&mut self, version: u64) {
        *self = Self { version: Some(version), counted: version, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(hours * 3_600, 0).expect("time")
    }

    fn people(numbers: std::ops::Range<u8>) -> impl Iterator<Item = [u8; WIDTH]> {
        numbers.map(|number| [number; WIDTH])
    }

    #[test]
    fn ten_subjects_publish_and_nine_wait() {
        let mut publication = Publication::default();
        publication.committed(1, people(0..9), at(0));
        assert_eq!((publication.version, publication.since, publication.pending.len()), (None, Some(at(0)), 9));
        // The same nine again are nobody else.
        publication.committed(2, people(0..9), at(1));
        assert_eq!((publication.version, publication.since, publication.pending.len()), (None, Some(at(0)), 9));
        publication.committed(3, people(9..10), at(2));
        assert_eq!(publication, Publication { version: Some(3), counted: 3, since: None, pending: BTreeSet::new() });
        // Who was published waits again when changed again.
        publication.committed(4, people(0..1), at(3));
        assert_eq!((publication.version, publication.counted, publication.since), (Some(3), 4, Some(at(3))));
    }

    #[test]
    fn a_day_publishes_one() {
        let mut publication = Publication::default();
        publication.committed(1, people(0..12), at(0));
        publication.committed(2, people(0..1), at(5));
        publication.committed(3, people(1..2), at(28));
        assert!(!publication.due(at(29) - TimeDelta::milliseconds(1)));
        assert!(publication.due(at(29)));
        publication.publish_due(at(29));
        assert_eq!(publication, Publication { version: Some(3), counted: 3, since: None, pending: BTreeSet::new() });
        // Nothing waits, so nothing is ever due.
        assert!(!publication.due(at(1_000)));
    }

    #[test]
    fn what_is_due_is_published_without_the_commit_that_finds_it_so() {
        let mut publication = Publication::default();
        publication.committed(1, people(0..3), at(0));
        publication.committed(2, people(3..5), at(24));
        assert_eq!((publication.version, publication.counted, publication.since), (Some(1), 2, Some(at(24))));
        assert_eq!(publication.pending, people(3..5).collect::<BTreeSet<_>>());
    }

    /// Against a model that keeps every unpublished change; and whoever asks in between changes nothing.
    #[test]
    fn random_commits_publish_what_the_model_says() {
        let mut random = StdRng::seed_from_u64(11);
        for _ in 0..300 {
            let (mut asked, mut unasked) = (Publication::default(), Publication::default());
            let (mut published, mut waiting) = (None, Vec::<(u64, i64, u8)>::new());
            let mut hour = 0_i64;
            for version in 1..40 {
                hour += random.random_range(0..14_i64);
                if waiting.first().is_some_and(|(_, since, _)| hour - since >= 24) {
                    published = waiting.drain(..).map(|(version, ..)| version).max();
                }
                if random.random_bool(0.5) {
                    asked.publish_due(at(hour));
                    assert_eq!(asked.version, published);
                }
                let subjects: Vec<u8> = (0..random.random_range(1..5)).map(|_| random.random_range(0..20)).collect();
                waiting.extend(subjects.iter().map(|subject| (version, hour, *subject)));
                if waiting.iter().map(|(.., subject)| subject).collect::<HashSet<_>>().len() >= 10 {
                    waiting.clear();
                    published = Some(version);
                }
                let subjects = || subjects.iter().map(|subject| [*subject; WIDTH]);
                asked.committed(version, subjects(), at(hour));
                unasked.committed(version, subjects(), at(hour));
                assert_eq!(asked.version, published);
                assert_eq!(asked, unasked);
                assert!(asked.pending.len() < SUBJECTS);
            }
        }
    }
}
