//! The defences of both gates, by name.
//!
//! In a hub that is shipped all of them stand. Tests take one away, with the cargo feature `weakened` that
//! only tests switch on, and see that something breaks: a defence whose absence nobody notices is none.

/// One defence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// A scan shows its caller the fields of the view and no others.
    HiddenFields,
    /// A scan shows its caller the rows of its scope and no others.
    RowScope,
    /// Nothing of what a caller wrote crosses into a scan but what the scan took over itself.
    Barrier,
    /// A plan in which a scan stands outside its barrier is not run.
    Verification,
    /// No statistic of what lies below a barrier is told above it.
    Statistics,
    /// What may fail on a value waits above the barrier.
    FallibleWaits,
    /// Predicates on masked fields see the mask.
    MaskedPredicates,
    /// What picks rows, or adds up numbers whose order shows, does so in a total order of visible columns.
    TotalOrder,
    /// Rows whose order nobody asked for come in the order of their own values.
    AnswerOrder,
    /// Whether the right side of AND and OR is evaluated is decided row by row.
    GuardedLogic,
    /// The words of a runtime error are chosen by the query.
    ErrorWords,
    /// Only listed functions are run.
    FunctionList,
    /// Only one plain query is planned.
    Firewall,
    /// The disclosure gate looks at the plan again as the optimizer left it.
    Recheck,
    /// Protected aggregates read published versions.
    Epochs,
    /// A cell is shown only where it stands for enough people, noise and all.
    Threshold,
    /// Released numbers carry noise that follows the set of people.
    Noise,
    /// A set that differs from an earlier one in a few people gets that one's answer.
    Snap,
    /// How much is released of a field is limited over all callers together.
    Ledger,
    /// A part that is nearly the whole is not told from it.
    Homogeneity,
    /// Conditions below a protected aggregate are coarse.
    Grammar,
}

impl Defence {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::HiddenFields,
        Self::RowScope,
        Self::Barrier,
        Self::Verification,
        Self::Statistics,
        Self::FallibleWaits,
        Self::MaskedPredicates,
        Self::TotalOrder,
        Self::AnswerOrder,
        Self::GuardedLogic,
        Self::ErrorWords,
        Self::FunctionList,
        Self::Firewall,
        Self::Recheck,
        Self::Epochs,
        Self::Threshold,
        Self::Noise,
        Self::Snap,
        Self::Ledger,
        Self::Homogeneity,
        Self::Grammar,
    ];
}

const _: () = assert!(Defence::ALL.len() == Defence::Grammar as usize + 1);

/// Which defences stand: all, but in tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defences {
    #[cfg(feature = "weakened")]
    down: u32,
}

impl Defences {
    /// All defences but these.
    #[cfg(feature = "weakened")]
    pub fn without(down: &[Defence]) -> Self {
        Self { down: down.iter().fold(0, |down, defence| down | 1 << *defence as u32) }
    }

    /// Whether a defence stands.
    #[cfg(feature = "weakened")]
    pub fn stand(self, defence: Defence) -> bool {
        self.down & (1 << defence as u32) == 0
    }

    /// Whether a defence stands: it does.
    #[cfg(not(feature = "weakened"))]
    #[expect(clippy::unused_self, reason = "the same call where tests can take defences down")]
    pub fn stand(self, _: Defence) -> bool {
        true
    }
}
