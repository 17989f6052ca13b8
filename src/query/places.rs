//! Places in which work runs, and the line before them. A long piece of work cannot be interrupted, so places are
//! divided by [`Shares`]: whoever holds many waits until others have had theirs. Knows no work.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::shares::Shares;
use crate::error::{Error, Result};

/// So many places.
pub(super) struct Places(Mutex<Line>);

struct Line {
    shares: Shares,
    /// Those who came first are in front.
    // INVARIANT: whenever the lock is free, none of them may take a place, or who comes now would overtake it.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    whose: Option<Arc<str>>,
    told: oneshot::Sender<Place>,
}

/// A place, given back when it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    whose: Option<Arc<str>>,
}

impl Places {
    /// So many places, all free.
    pub(super) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Line { shares: Shares::of(all), waiting: VecDeque::new() })))
    }

    /// A place in somebody's name, as soon as it may have one more; among those who may, first come is first served.
    /// Where nobody is named, any place will do. May be dropped while it waits, and takes none then.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub(super) async fn take(self: &Arc<Self>, whose: Option<&Arc<str>>) -> Result<Place> {
        let coming = {
            let mut line = self.line();
            if line.shares.take(whose, 1) {
                return Ok(Place { places: Arc::clone(self), whose: whose.cloned() });
            }
            let (told, coming) = oneshot::channel();
            // Those who gave up would be found as their turn comes, which may be long.
            line.waiting.retain(|waiting| !waiting.told.is_closed());
            line.waiting.push_back(Waiting { whose: whose.cloned(), told });
            coming
        };
        coming.await.map_err(Error::internal)
    }

    /// Gives a place back, and returns those who may have it now with what they are to be told.
    fn give_back(self: &Arc<Self>, whose: Option<&Arc<str>>) -> Vec<(oneshot::Sender<Place>, Place)> {
        let mut served = Vec::new();
        let mut line = self.line();
        let Line { shares, waiting } = &mut *line;
        shares.give_back(whose, 1);
        let mut at = 0;
        while shares.free() > 0
            && let Some(next) = waiting.get(at)
        {
            // Asked once: a place is taken for those alone who are told of it. Whoever goes meanwhile gives it back, as
            // it cannot be told.
            let is_gone = next.told.is_closed();
            if !is_gone && !shares.take(next.whose.as_ref(), 1) {
                at += 1;
                continue;
            }
            let Some(Waiting { whose, told }) = waiting.remove(at) else { break };
            if !is_gone {
                served.push((told, Place { places: Arc::clone(self), whose }));
            }
        }
        served
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (told, place) in self.places.give_back(self.whose.as_ref()) {
            drop(told.send(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt, future::BoxFuture};
    use tokio::time::timeout;

    use super::*;

    fn caller(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    /// A place that is there, or nothing where it must be waited for.
    fn at_once(places: &Arc<Places>, whose: &Arc<str>) -> Option<Place> {
        places.take(Some(whose)).now_or_never().map(Result::unwrap)
    }

    /// Somebody who stands in the line already.
    fn in_line(places: &Arc<Places>, whose: &Arc<str>) -> BoxFuture<'static, Result<Place>> {
        let (places, whose) = (Arc::clone(places), Arc::clone(whose));
        let mut coming = async move { places.take(Some(&whose)).await }.boxed();
        assert!((&mut coming).now_or_never().is_none(), "there was a place");
        coming
    }

    /// Whether there is a place for who waits by now.
    fn served(coming: &mut BoxFuture<'static, Result<Place>>) -> Option<Place> {
        coming.now_or_never().map(Result::unwrap)
    }

    #[test]
    fn two_who_want_all_leave_places_to_others() {
        let (places, [ann, bob, cid]) = (Places::new(8), ["ann", "bob", "cid"].map(caller));
        let held: Vec<_> = [&ann, &bob].repeat(4).into_iter().map(|whose| at_once(&places, whose)).collect();
        assert_eq!(held.iter().flatten().count(), 6);
        assert!(at_once(&places, &cid).is_some());
        assert!(at_once(&places, &ann).is_none());
        drop(held);
        // One alone has half, and all of it is free again.
        let held: Vec<_> = (0..8).filter_map(|_| at_once(&places, &ann)).collect();
        assert_eq!(held.len(), 4);
        drop(held);
        assert_eq!(places.line().shares.free(), 8);
    }

    #[test]
    fn where_nobody_is_named_all_places_can_be_had() {
        let places = Places::new(8);
        let take = || places.take(None).now_or_never().map(Result::unwrap);
        let held: Vec<_> = (0..8).filter_map(|_| take()).collect();
        assert_eq!(held.len(), 8);
        assert!(take().is_none());
        drop(held);
        assert!(take().is_some());
    }

    #[test]
    fn who_comes_first_is_served_first_among_those_who_may() {
        let (places, [ann, bob, cid]) = (Places::new(2), ["ann", "bob", "cid"].map(caller));
        let (held, other) = (at_once(&places, &ann).unwrap(), at_once(&places, &bob).unwrap());
        let mut anns = in_line(&places, &ann);
        let (mut cids, mut bobs) = (in_line(&places, &cid), in_line(&places, &bob));
        assert!(served(&mut anns).is_none() && served(&mut cids).is_none());
        // Bob's place is free, and Ann may not have it besides her own: that falls to Cid, who came before Bob.
        drop(other);
        assert!(served(&mut anns).is_none() && served(&mut bobs).is_none());
        let cid_holds = served(&mut cids).unwrap();
        // Now Ann has none and came first of all.
        drop(held);
        assert!(served(&mut bobs).is_none());
        let ann_holds = served(&mut anns).unwrap();
        drop(cid_holds);
        let bob_holds = served(&mut bobs).unwrap();
        drop((ann_holds, bob_holds));
        assert_eq!(places.line().shares.free(), 2);
    }

    #[test]
    fn who_gives_up_takes_no_place() {
        let (places, [ann, bob, cid]) = (Places::new(1), ["ann", "bob", "cid"].map(caller));
        let held = at_once(&places, &ann).unwrap();
        // One goes while it waits, the other once it was given the place and has not looked yet.
        let gone = in_line(&places, &bob);
        let (goes, mut stays) = (in_line(&places, &bob), in_line(&places, &cid));
        drop(gone);
        drop(held);
        assert!(served(&mut stays).is_none(), "it is not its turn");
        drop(goes);
        let held = served(&mut stays).unwrap();
        for _ in 0..100 {
            drop(in_line(&places, &bob));
        }
        assert!(places.line().waiting.len() <= 1, "those who went are still in the line");
        drop(held);
        let line = places.line();
        assert_eq!((line.shares.free(), line.waiting.len()), (1, 0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_place_is_lost_in_a_crowd() {
        let places = Places::new(3);
        let crowd: Vec<_> = (0..400)
            .map(|at| {
                let (places, whose) = (Arc::clone(&places), caller(["ann", "bob", "cid", "dan"][at % 4]));
                tokio::spawn(async move {
                    // Every third has no patience.
                    let patience = if at % 3 == 0 { Duration::from_micros(50) } else { Duration::from_secs(60) };
                    let place = timeout(patience, places.take(Some(&whose))).await;
                    tokio::time::sleep(Duration::from_micros(100)).await;
                    assert!(at % 3 == 0 || place.is_ok());
                })
            })
            .collect();
        for one in crowd {
            one.await.unwrap();
        }
        let line = places.line();
        assert_eq!((line.shares.free(), line.waiting.iter().filter(|one| !one.told.is_closed()).count()), (3, 0));
    }
}
