//! Stretches of texts: those from one on and below another, in the order of their bytes; and where they lie among rows
//! in that order.

use std::ops::Range;

use arrow::array::{Array, StringArray};

/// The texts from one on, and below another; where one is not given, there is no end on that side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stretch {
    from: Option<String>,
    below: Option<String>,
}

impl Stretch {
    /// That text and those after it.
    pub fn from(text: &str) -> Self {
        Self { from: Some(text.to_owned()), below: None }
    }

    /// Those before that text.
    pub fn below(text: &str) -> Self {
        Self { from: None, below: Some(text.to_owned()) }
    }

    /// Those after that text.
    pub fn after(text: &str) -> Self {
        Self { from: Some(next(text)), below: None }
    }

    /// That text and those before it.
    pub fn up_to(text: &str) -> Self {
        Self { from: None, below: Some(next(text)) }
    }

    /// That text alone.
    pub fn at(text: &str) -> Self {
        Self::from(text).and(Self::up_to(text))
    }

    /// What lies in both.
    pub fn and(self, other: Self) -> Self {
        let below = match (self.below, other.below) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self { from: self.from.max(other.from), below }
    }

    /// What lies in one or the other, and between them.
    pub fn or(self, other: Self) -> Self {
        let below = self.below.zip(other.below).map(|(one, other)| one.max(other));
        Self { from: self.from.zip(other.from).map(|(one, other)| one.min(other)), below }
    }

    /// Whether it has an end.
    pub fn is_bounded(&self) -> bool {
        self.from.is_some() || self.below.is_some()
    }

    /// Where it lies among texts in their order, NULL first and never in it.
    pub fn rows_of(&self, texts: &StringArray) -> Range<usize> {
        let first = |bound: &Option<String>, otherwise: usize| match bound {
            None => otherwise,
            Some(bound) => {
                let (mut from, mut to) = (texts.null_count(), texts.len());
                while from < to {
                    let middle = from.midpoint(to);
                    match texts.value(middle) < bound.as_str() {
                        true => from = middle + 1,
                        false => to = middle,
                    }
                }
                from
            }
        };
        let (from, below) = (first(&self.from, texts.null_count()), first(&self.below, texts.len()));
        from..below.max(from)
    }
}

/// The text that comes right after another.
fn next(text: &str) -> String {
    format!("{text}\0")
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;

    fn made_of(parts: &[(u8, String)]) -> (Stretch, impl Fn(&str) -> bool) {
        let stretch = parts.iter().fold(Stretch::default(), |so_far, (how, text)| match how % 6 {
            0 => so_far.and(Stretch::from(text)),
            1 => so_far.and(Stretch::below(text)),
            2 => so_far.and(Stretch::after(text)),
            3 => so_far.and(Stretch::up_to(text)),
            4 => so_far.and(Stretch::at(text)),
            _ => so_far.or(Stretch::at(text)),
        });
        let parts = parts.to_vec();
        let holds = move |found: &str| {
            parts.iter().fold(true, |so_far, (how, text)| match how % 6 {
                0 => so_far && found >= text.as_str(),
                1 => so_far && found < text.as_str(),
                2 => so_far && found > text.as_str(),
                3 => so_far && found <= text.as_str(),
                4 => so_far && found == text.as_str(),
                _ => so_far || found == text.as_str(),
            })
        };
        (stretch, holds)
    }

    proptest! {
        #[test]
        fn no_row_is_left_out_that_is_meant(
            parts in collection::vec((any::<u8>(), "[ab]{0,2}"), 0..4),
            mut texts in collection::vec(option::of("[ab]{0,3}"), 0..12),
        ) {
            texts.sort();
            let (stretch, holds) = made_of(&parts);
            let rows = stretch.rows_of(&StringArray::from(texts.clone()));
            for (at, text) in texts.iter().enumerate() {
                let is_meant = text.as_deref().is_some_and(&holds);
                prop_assert!(!is_meant || rows.contains(&at), "{text:?} of {parts:?} in {texts:?}: {rows:?}");
                // Without alternatives, nothing else is in it.
                if parts.iter().all(|(how, _)| how % 6 < 5) {
                    prop_assert_eq!(is_meant, rows.contains(&at));
                }
            }
        }
    }
}
