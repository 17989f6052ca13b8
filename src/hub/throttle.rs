//! How much one caller may ask: so many questions a second, and so many at once, so that one agency's broken loop
//! does not keep the others waiting. Knows no question and no policy.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::{Error, Result},
    query::Bounds,
};

/// How long a question waits for others of its caller.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most questions of one caller that wait, for each that may run: beyond them it is told at once.
const WAITING: usize = 32;

/// What one caller may ask. Zero means as much as it likes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Questions a second over some time; twice as many at once after a pause.
    pub per_second: u32,
    /// Questions at once; more wait.
    pub at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_second: 200, at_once: 4 }
    }
}

/// Counts what callers ask.
pub(super) struct Throttle {
    at_once: usize,
    patience: Duration,
    rates: Option<DefaultKeyedRateLimiter<String>>,
    turns: Mutex<HashMap<String, Arc<Line>>>,
}

/// The questions of one caller: those that run, and all that have come in.
struct Line {
    caller: Arc<str>,
    running: Arc<Semaphore>,
    inside: Arc<Semaphore>,
}

/// Leave to ask one question, given back when the last copy of it is dropped.
#[derive(Clone)]
pub(super) struct Turn(Option<Arc<Held>>);

/// What a question holds of its caller's line.
struct Held {
    caller: Arc<str>,
    _inside: OwnedSemaphorePermit,
    _running: OwnedSemaphorePermit,
}

impl Turn {
    /// In whose name places are taken for the question; nobody's, where callers ask as much as they like.
    pub(super) fn caller(&self) -> Option<&Arc<str>> {
        self.0.as_deref().map(|held| &held.caller)
    }
}

impl Throttle {
    pub(super) fn new(limits: Limits) -> Self {
        let rates = NonZeroU32::new(limits.per_second).map(|rate| {
            let burst = rate.saturating_add(rate.get());
            RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
        });
        Self { at_once: limits.at_once, patience: PATIENCE, rates, turns: Mutex::default() }
    }

    /// Waits for the caller's turn.
    ///
    /// # Errors
    /// [`Error::RateLimited`], which says when to try again, [`Error::Timeout`] and [`Error::Cancelled`].
    pub(super) async fn turn(&self, caller: &str, bounds: &Bounds) -> Result<Turn> {
        if let Some(rates) = &self.rates
            && let Err(early) = rates.check_key(&caller.to_owned())
        {
            let wait = early.wait_time_from(governor::clock::DefaultClock::default().now());
            return Err(Error::RateLimited(format!(
                "this caller asks faster than the hub lets it; try again in {} ms",
                wait.as_millis().max(1)
            )));
        }
        if self.at_once == 0 {
            return Ok(Turn(None));
        }
        let line = Arc::clone(
            self.turns
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(caller.to_owned())
                .or_insert_with(|| Arc::new(Line::of(caller, self.at_once))),
        );
        let crowded = || {
            Error::RateLimited(format!(
                "this caller has more questions waiting than the hub takes; ask {} at once",
                self.at_once
            ))
        };
        let inside = Arc::clone(&line.inside).try_acquire_owned().map_err(|_| crowded())?;
        let (patience, over) = match bounds.deadline.filter(|deadline| *deadline < self.patience) {
            Some(deadline) => (deadline, Error::Timeout(deadline.as_secs())),
            None => (self.patience, crowded()),
        };
        let running = tokio::select! {
            running = tokio::time::timeout(patience, Arc::clone(&line.running).acquire_owned()) => running,
            () = bounds.stop.cancelled() => return Err(Error::Cancelled),
        };
        let running = running.map_err(|_| over)?.map_err(Error::internal)?;
        let caller = Arc::clone(&line.caller);
        Ok(Turn(Some(Arc::new(Held { caller, _inside: inside, _running: running }))))
    }
}

impl Line {
    fn of(caller: &str, at_once: usize) -> Self {
        let inside = at_once.saturating_mul(1 + WAITING).min(Semaphore::MAX_PERMITS);
        let (running, inside) = (Semaphore::new(at_once), Semaphore::new(inside));
        Self { caller: Arc::from(caller), running: Arc::new(running), inside: Arc::new(inside) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One question at once, and no long wait.
    fn one_at_once(patience: Duration) -> Throttle {
        Throttle { patience, ..Throttle::new(Limits { per_second: 0, at_once: 1 }) }
    }

    fn limited(error: &Error) -> bool {
        matches!(error, Error::RateLimited(_))
    }

    #[tokio::test]
    async fn a_caller_that_asks_too_fast_is_told_and_others_are_not() {
        let throttle = Throttle::new(Limits { per_second: 2, at_once: 0 });
        let bounds = Bounds::default();
        for _ in 0..4 {
            throttle.turn("fast", &bounds).await.unwrap();
        }
        assert!(limited(&throttle.turn("fast", &bounds).await.err().unwrap()));
        throttle.turn("slow", &bounds).await.unwrap();
    }

    #[tokio::test]
    async fn a_caller_waits_for_its_own_questions_alone() {
        let throttle = one_at_once(Duration::from_millis(20));
        let bounds = Bounds::default();
        let held = throttle.turn("busy", &bounds).await.unwrap();
        throttle.turn("other", &bounds).await.unwrap();
        assert!(limited(&throttle.turn("busy", &bounds).await.err().unwrap()));
        drop(held);
        throttle.turn("busy", &bounds).await.unwrap();
    }

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_what_was_begun_in_it() {
        let throttle = one_at_once(Duration::from_millis(20));
        let bounds = Bounds::default();
        let asked = throttle.turn("busy", &bounds).await.unwrap();
        let working = asked.clone();
        drop(asked);
        assert!(limited(&throttle.turn("busy", &bounds).await.err().unwrap()));
        drop(working);
        throttle.turn("busy", &bounds).await.unwrap();
    }

    #[tokio::test]
    async fn a_turn_says_whose_it_is_unless_callers_ask_as_they_like() {
        let bounds = Bounds::default();
        let turn = one_at_once(PATIENCE).turn("busy", &bounds).await.unwrap();
        assert_eq!(turn.caller().map(|caller| &**caller), Some("busy"));
        let turn = Throttle::new(Limits { per_second: 0, at_once: 0 }).turn("busy", &bounds).await.unwrap();
        assert!(turn.caller().is_none());
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_it_has_time() {
        let throttle = one_at_once(Duration::from_secs(60));
        let _held = throttle.turn("busy", &Bounds::default()).await.unwrap();
        let bounds = Bounds { deadline: Some(Duration::from_millis(20)), ..Bounds::default() };
        let told = tokio::time::timeout(Duration::from_secs(10), throttle.turn("busy", &bounds)).await.unwrap();
        assert!(matches!(told.err(), Some(Error::Timeout(0))));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_can_be_cancelled() {
        let throttle = Arc::new(one_at_once(Duration::from_secs(60)));
        let bounds = Bounds::default();
        let _held = throttle.turn("busy", &bounds).await.unwrap();
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let (throttle, bounds) = (Arc::clone(&throttle), bounds.clone());
                tokio::spawn(async move { throttle.turn("busy", &bounds).await.err() })
            })
            .collect();
        tokio::task::yield_now().await;
        // Were the one too many kept waiting, this would take a minute.
        let stays = Bounds::default();
        let told = throttle.turn("busy", &stays);
        let told = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
        assert!(limited(&told.err().unwrap()));
        bounds.stop.cancel();
        for waiter in waiting {
            assert!(matches!(waiter.await.unwrap(), Some(Error::Cancelled)));
        }
    }
}
