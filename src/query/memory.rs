//! What is remembered of questions that the same caller asks again and again, as dashboards do: by the engine how they
//! are answered, by the hub what they were described as, and nothing of the answers.
//!
//! What is remembered holds no rows and no version of a table; a plan is bound anew to what stands when it is asked
//! again. So it outlives commits, which nobody can feel by it, and keeps nothing that was erased. It is remembered for
//! one view, and of no use without it; nobody finds what others asked.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use crate::policy::View;

/// Questions remembered for each view.
const EACH: usize = 64;

/// Questions remembered of all views together: a plan takes some tens of kilobytes.
const ALL: usize = 2_048;

/// The longest statement that is remembered, and the most that its parameters take, in bytes.
const LONGEST: usize = 4 << 10;

/// The most parameters of one.
const PARAMETERS: usize = 32;

/// A question, as it must be asked again to be known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asked {
    sql: String,
    params: Vec<ScalarValue>,
    /// To the engine, instants of two zones are the same value.
    types: Vec<DataType>,
}

impl Asked {
    /// A statement and its parameters; `None` where it is too long to be remembered.
    pub fn new(sql: &str, params: &[ScalarValue]) -> Option<Self> {
        if sql.len() > LONGEST || params.len() > PARAMETERS {
            return None;
        }
        let types: Vec<DataType> = params.iter().map(ScalarValue::data_type).collect();
        let nested = types.iter().any(DataType::is_nested);
        let fits = !nested && params.iter().map(ScalarValue::size).sum::<usize>() <= LONGEST;
        fits.then(|| Self { sql: sql.to_owned(), params: params.to_vec(), types })
    }
}

/// What is remembered of questions, bounded in number.
pub struct Memory<T>(Mutex<Remembered<T>>);

struct Remembered<T> {
    /// By caller and purpose.
    views: HashMap<(String, String), OfView<T>>,
    /// Rises with every look.
    looks: u64,
}

struct OfView<T> {
    view: Weak<View>,
    known: HashMap<Asked, Arc<T>>,
    /// In the order in which they were asked first.
    order: VecDeque<Asked>,
    last_look: u64,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(Mutex::new(Remembered { views: HashMap::new(), looks: 0 }))
    }
}

impl<T> Memory<T> {
    /// What was remembered of a question under that very view.
    pub fn recall(&self, view: &Arc<View>, asked: &Asked) -> Option<Arc<T>> {
        self.locked().of_view(view)?.known.get(asked).cloned()
    }

    /// Remembers it, in place of the one asked longest ago where there are many. Where there are many of all, what
    /// the view knew that was looked at longest ago goes.
    pub fn remember(&self, view: &Arc<View>, asked: Asked, what: Arc<T>) {
        let mut memory = self.locked();
        if memory.of_view(view).is_none() {
            let last_look = memory.looks;
            memory.views.insert(key(view), OfView::of(view, last_look));
        }
        if let Some(of_view) = memory.of_view(view) {
            of_view.remember(asked, what);
        }
        memory.forget_beyond(ALL);
    }

    /// Forgets everything.
    #[cfg(feature = "weakened")]
    pub fn forget(&self) {
        self.locked().views.clear();
    }

    fn locked(&self) -> MutexGuard<'_, Remembered<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Remembered<T> {
    /// What is known of that very view.
    fn of_view(&mut self, view: &Arc<View>) -> Option<&mut OfView<T>> {
        self.looks += 1;
        let of_view = self.views.get_mut(&key(view))?;
        of_view.last_look = self.looks;
        of_view.is_of(view).then_some(of_view)
    }

    /// Leaves no more than so many questions: first those of views that are gone are forgotten.
    fn forget_beyond(&mut self, most: usize) {
        if self.count() <= most {
            return;
        }
        self.views.retain(|_, of_view| of_view.view.strong_count() > 0);
        while self.count() > most {
            let looked_at = self.views.iter().min_by_key(|(_, of_view)| of_view.last_look);
            let Some(oldest) = looked_at.map(|(key, _)| key.clone()) else { return };
            self.views.remove(&oldest);
        }
    }

    fn count(&self) -> usize {
        self.views.values().map(|of_view| of_view.known.len()).sum()
    }
}

impl<T> OfView<T> {
    fn of(view: &Arc<View>, last_look: u64) -> Self {
        Self { view: Arc::downgrade(view), known: HashMap::new(), order: VecDeque::new(), last_look }
    }

    fn is_of(&self, view: &Arc<View>) -> bool {
        self.view.upgrade().is_some_and(|known| Arc::ptr_eq(&known, view))
    }

    fn remember(&mut self, asked: Asked, what: Arc<T>) {
        if self.known.insert(asked.clone(), what).is_none() {
            self.order.push_back(asked);
        }
        if self.order.len() > EACH
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn key(view: &View) -> (String, String) {
    (view.caller().id.clone(), view.purpose().to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chrono::{DateTime, Utc};

    use super::*;
    use crate::{audit::Clock, dataset::contract, policy::Policy};

    fn views() -> Vec<Arc<View>> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let datasets = contract::load_folder(&repository.join("schemas")).unwrap();
        let now: DateTime<Utc> = "2026-01-07T01:00:00Z".parse().unwrap();
        let clock: Clock = Arc::new(move || now);
        let policy = Policy::load(&repository.join("policies"), &datasets, clock).unwrap();
        let view = |(caller, purpose)| policy.view(&policy.caller(caller).unwrap(), purpose).unwrap();
        let analyst = "health-analyst";
        [("grid-worker", "case-management"), (analyst, "epidemiology"), (analyst, "supply-planning")].map(view).into()
    }

    #[test]
    fn a_question_is_another_where_its_parameters_are_of_other_types() {
        let asked = |value: ScalarValue| Asked::new("SELECT $1", &[value]).unwrap();
        let at = |zone: Option<&str>| ScalarValue::TimestampMicrosecond(Some(1), zone.map(Into::into));
        let same = [at(None), at(Some("UTC")), at(Some("Asia/Shanghai"))];
        let fixed = [ScalarValue::FixedSizeBinary(1, None), ScalarValue::FixedSizeBinary(2, None)];
        let ones = [ScalarValue::Int32(Some(1)), ScalarValue::Int64(Some(1)), ScalarValue::Utf8(Some("1".into()))];
        let nulls = [ScalarValue::Null, ScalarValue::Int32(None), ScalarValue::Utf8(None), ScalarValue::Utf8View(None)];
        for values in [&same[..], &fixed, &ones, &nulls] {
            for (at, one) in values.iter().enumerate() {
                assert_eq!(asked(one.clone()), asked(one.clone()));
                for other in &values[at + 1..] {
                    assert_ne!(asked(one.clone()), asked(other.clone()), "{one:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_long_is_not_remembered() {
        let text = |length: usize| ScalarValue::Utf8(Some("x".repeat(length)));
        assert!(Asked::new("SELECT $1", &[text(LONGEST / 2)]).is_some());
        assert!(Asked::new("SELECT $1", &[text(LONGEST)]).is_none());
        assert!(Asked::new("SELECT $1, $2", &[text(LONGEST / 2), text(LONGEST / 2)]).is_none());
        assert!(Asked::new("SELECT $1", &[ScalarValue::Binary(Some(vec![0; LONGEST]))]).is_none());
        assert!(Asked::new(&" ".repeat(LONGEST + 1), &[]).is_none());
        assert!(Asked::new("", &vec![ScalarValue::Null; PARAMETERS + 1]).is_none());
    }

    #[test]
    fn of_all_views_those_go_that_were_looked_at_longest_ago() {
        let mut memory = Remembered { views: HashMap::new(), looks: 0 };
        let views = views();
        for view in &views {
            let mut of_view = OfView::of(view, memory.looks);
            of_view.remember(Asked::new("one", &[]).unwrap(), Arc::new(1));
            of_view.remember(Asked::new("two", &[]).unwrap(), Arc::new(2));
            memory.views.insert(key(view), of_view);
        }
        for looked_at in [1, 2, 0] {
            assert!(memory.of_view(&views[looked_at]).is_some());
        }
        for (most, left) in [(6, [true, true, true]), (5, [true, false, true]), (2, [true, false, false])] {
            memory.forget_beyond(most);
            let knows: Vec<_> = views.iter().map(|view| memory.views.contains_key(&key(view))).collect();
            assert_eq!(knows, left);
        }
    }
}
