//! What statements were found to take and answer with. Clients that send the same text anew each time would have it
//! planned twice each time, once to be described and once to be answered.

use std::{collections::VecDeque, sync::Arc};

use arrow::datatypes::DataType;

use super::{prepared::Shape, session::Terms};

/// How many are known at once.
const MOST: usize = 64;

/// The longest text that is kept with the types of its parameters, in bytes.
const LONGEST: usize = 8 << 10;

/// What a description depends on: the text, the types that its client named, on what terms it is asked, and what the
/// caller's catalogue shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The statement.
    pub(super) sql: String,
    /// The types of its parameters as the client named them; none where it named no type.
    pub(super) types: Vec<DataType>,
    /// The session's terms.
    pub(super) terms: Terms,
    /// The version of the caller's catalogue.
    pub(super) version: String,
}

/// Descriptions of the statements that were described last.
#[derive(Default)]
pub(super) struct Shapes {
    known: VecDeque<(Key, Arc<Shape>)>,
}

impl Shapes {
    /// What a statement was found to be on the same terms.
    pub(super) fn find(&mut self, key: &Key) -> Option<Arc<Shape>> {
        let at = self.known.iter().position(|(known, _)| known == key)?;
        let found = self.known.remove(at)?;
        let shape = Arc::clone(&found.1);
        // The one that was not asked for the longest time goes first.
        self.known.push_back(found);
        Some(shape)
    }

    /// Keeps what a statement was found to be, in place of what was not asked for the longest time.
    pub(super) fn keep(&mut self, key: Key, shape: Arc<Shape>) {
        let types = size_of_val(key.types.as_slice()) + size_of_val(shape.parameters.as_slice());
        if key.sql.len() + types > LONGEST {
            return;
        }
        if self.known.len() >= MOST {
            self.known.pop_front();
        }
        self.known.push_back((key, shape));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disclose::Wishes;

    fn key(sql: &str, purpose: &str, version: &str) -> Key {
        let terms = Terms { purpose: Some(purpose.to_owned()), wishes: Wishes::default() };
        Key { sql: sql.to_owned(), types: vec![DataType::Int32], terms, version: version.to_owned() }
    }

    fn shape() -> Arc<Shape> {
        Arc::new(Shape { parameters: Vec::new(), schema: None })
    }

    #[test]
    fn a_description_holds_for_the_same_terms_and_catalogue() {
        let mut shapes = Shapes::default();
        let kept = shape();
        shapes.keep(key("a", "p", "1"), Arc::clone(&kept));
        assert!(shapes.find(&key("a", "p", "1")).is_some_and(|found| Arc::ptr_eq(&found, &kept)));
        for other in [key("b", "p", "1"), key("a", "q", "1"), key("a", "p", "2")] {
            assert!(shapes.find(&other).is_none(), "{other:?}");
        }
        let mut wishful = key("a", "p", "1");
        wishful.terms.wishes.interval = true;
        assert!(shapes.find(&wishful).is_none());
        let named = Key { types: vec![DataType::Date32], ..key("a", "p", "1") };
        assert!(shapes.find(&named).is_none(), "columns follow the types that a client names");
    }

    #[test]
    fn the_one_that_nobody_asked_for_goes_first() {
        let mut shapes = Shapes::default();
        for at in 0..MOST {
            shapes.keep(key(&at.to_string(), "p", "1"), shape());
        }
        assert!(shapes.find(&key("0", "p", "1")).is_some());
        shapes.keep(key("more", "p", "1"), shape());
        assert!(shapes.find(&key("0", "p", "1")).is_some() && shapes.find(&key("1", "p", "1")).is_none());
        shapes.keep(key(&"x".repeat(LONGEST + 1), "p", "1"), shape());
        assert_eq!(shapes.known.len(), MOST);
    }
}
