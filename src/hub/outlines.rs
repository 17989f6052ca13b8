//! What the hub remembers of statements that the same caller has described again and again, as clients of Flight SQL do
//! before each question: the types of the parameters and the columns, and nothing of how a statement is answered.
//!
//! What is remembered cannot be stale, since it says nothing that could change. A description follows from the statement
//! and the view alone: the gate decides by the structure of the plan, the view and the contracts, and looks at no row and
//! at no number that was released, also where it rewrites what is protected; what the ledger has to say is said when an
//! answer is released, and is not told in advance. So commits, erasures and releases change no description, and policies
//! make another view when they decide anew. Only what holds whenever it is asked is kept, and only what passed: a
//! refusal is recorded each time.

use std::sync::Arc;

use super::{Described, Question};
use crate::{
    disclose::Wishes,
    policy::View,
    query::{Asked, Memory},
};

/// The most that a description takes that is remembered, in bytes: there may be as many as of plans.
const LARGEST: usize = 32 << 10;

/// Descriptions by the view they were made under, and by what was asked.
#[derive(Default)]
pub(super) struct Outlines(Memory<Described>);

impl Outlines {
    /// What a statement was described as under that very view.
    pub(super) fn recall(&self, view: &Arc<View>, question: &Question) -> Option<Arc<Described>> {
        self.0.recall(view, &asked(question)?)
    }

    /// Remembers it, where it is small and asked without wishes.
    pub(super) fn remember(&self, view: &Arc<View>, question: &Question, described: &Arc<Described>) {
        if let Some(asked) = asked(question).filter(|_| described.size() <= LARGEST) {
            self.0.remember(view, asked, Arc::clone(described));
        }
    }
}

/// The question as it must be asked again; wishes add columns, so what has any is another one.
fn asked(question: &Question) -> Option<Asked> {
    (question.wishes == Wishes::default()).then(|| Asked::new(&question.sql, &question.params))?
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::datatypes::{DataType, Field, Schema};
    use chrono::{DateTime, Utc};
    use datafusion::common::ScalarValue;

    use super::*;
    use crate::{
        audit::Clock,
        dataset::contract,
        disclose::{ColumnExposure, Reached, Small},
        policy::Policy,
    };

    fn policy() -> Policy {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let datasets = contract::load_folder(&repository.join("schemas")).unwrap();
        let now: DateTime<Utc> = "2026-01-07T01:00:00Z".parse().unwrap();
        let clock: Clock = Arc::new(move || now);
        Policy::load(&repository.join("policies"), &datasets, clock).unwrap()
    }

    fn view(policy: &Policy, purpose: &str) -> Arc<View> {
        policy.view(&policy.caller("health-analyst").unwrap(), purpose).unwrap()
    }

    fn described(name: &str) -> Arc<Described> {
        let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]));
        let column = ColumnExposure {
            name: name.to_owned(),
            kind: "bigint".into(),
            exposure: "clear".into(),
            noise: None,
            reached_by: Vec::new(),
        };
        Arc::new(Described { parameters: vec![DataType::Int32], schema, columns: vec![column] })
    }

    #[test]
    fn a_description_is_found_for_the_same_view_statement_types_and_terms() {
        let (policy, outlines) = (policy(), Outlines::default());
        let (seen, other) = (view(&policy, "epidemiology"), view(&policy, "supply-planning"));
        let asked = |kind: ScalarValue| Question { params: vec![kind], ..Question::new("SELECT $1", "test") };
        let (number, day) = (|| asked(ScalarValue::Int32(None)), || asked(ScalarValue::Date32(None)));
        let known = described("n");
        outlines.remember(&seen, &number(), &known);
        assert!(outlines.recall(&seen, &number()).is_some_and(|found| Arc::ptr_eq(&found, &known)));
        assert!(outlines.recall(&other, &number()).is_none());
        assert!(outlines.recall(&seen, &day()).is_none());
        assert!(outlines.recall(&seen, &Question { sql: "SELECT $1 ".into(), ..number() }).is_none());
        // The same caller and purpose once policies have decided anew.
        let later = view(&self::policy(), "epidemiology");
        assert!(outlines.recall(&later, &number()).is_none());
        for wishes in
            [Wishes { interval: true, ..Wishes::default() }, Wishes { small: Small::Merge, ..Wishes::default() }]
        {
            let wished = || Question { wishes, ..number() };
            assert!(outlines.recall(&seen, &wished()).is_none());
            outlines.remember(&seen, &wished(), &described("n"));
            assert!(outlines.recall(&seen, &wished()).is_none());
        }
        assert!(outlines.recall(&seen, &number()).is_some_and(|found| Arc::ptr_eq(&found, &known)));
    }

    #[test]
    fn what_is_large_is_not_remembered() {
        let (policy, outlines) = (policy(), Outlines::default());
        let seen = view(&policy, "epidemiology");
        let question = Question::new("SELECT 1", "test");
        outlines.remember(&seen, &question, &described(&"x".repeat(LARGEST)));
        assert!(outlines.recall(&seen, &question).is_none());
        let mut reached = Described::clone(&described("n"));
        let field = || Reached { field: "cdc.cases.severity".into(), how: "value".into() };
        reached.columns[0].reached_by = std::iter::repeat_with(field).take(LARGEST / size_of::<Reached>()).collect();
        outlines.remember(&seen, &question, &Arc::new(reached));
        assert!(outlines.recall(&seen, &question).is_none());
        outlines.remember(&seen, &question, &described("n"));
        assert!(outlines.recall(&seen, &question).is_some());
    }
}
