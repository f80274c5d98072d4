//! The places of connections: how many there are, and who gives his to a new one when all are taken.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A connection that is being answered has no rank among those that rest.
const ANSWERED: u64 = 0;

/// A bounded number of places.
///
/// A connection *rests* from its begin to its first question, and between an answer and the next question. When all
/// places are taken, the one that has rested longest goes: connections that ask nothing cannot keep out one that does.
#[derive(Clone, Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    resting: Arc<Resting>,
}

#[derive(Debug)]
struct Resting {
    /// By rank: who began to rest first is first.
    connections: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicU64,
    /// Somebody began to rest.
    more: Notify,
}

impl Places {
    pub fn new(count: usize) -> Self {
        let resting =
            Resting { connections: Mutex::default(), next: AtomicU64::new(ANSWERED + 1), more: Notify::new() };
        Self { free: Arc::new(Semaphore::new(count)), resting: Arc::new(resting) }
    }

    /// Takes a place; when none is free, one that is given up for it. Where all are being answered, it waits.
    pub async fn take(&self) -> Place {
        loop {
            let mut more = pin!(self.resting.more.notified());
            more.as_mut().enable();
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return self.place(permit);
            }
            self.resting.displace();
            tokio::select! {
                permit = Arc::clone(&self.free).acquire_owned() => {
                    // The semaphore is never closed.
                    if let Ok(permit) = permit { return self.place(permit) }
                }
                () = more => {}
            }
        }
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        let seat =
            Seat { resting: Arc::clone(&self.resting), told: Arc::default(), rank: Arc::new(AtomicU64::new(ANSWERED)) };
        seat.rest();
        Place { seat, _permit: permit }
    }
}

impl Resting {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<Notify>>) -> T) -> T {
        f(&mut self.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn displace(&self) {
        if let Some((_, longest)) = self.with(BTreeMap::pop_first) {
            longest.notify_one();
        }
    }
}

/// A place that was taken; free again when dropped.
#[derive(Debug)]
pub struct Place {
    seat: Seat,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// For what answers on this connection.
    pub fn seat(&self) -> Seat {
        self.seat.clone()
    }

    /// Completes when the place is to be given up. A connection that is being answered is not disturbed.
    pub async fn displaced(&self) {
        loop {
            self.seat.told.notified().await;
            if self.seat.rank.load(Ordering::Relaxed) != ANSWERED {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seat.leave();
    }
}

/// Whether a connection rests or is being answered.
#[derive(Clone, Debug)]
pub struct Seat {
    resting: Arc<Resting>,
    told: Arc<Notify>,
    rank: Arc<AtomicU64>,
}

impl Seat {
    fn rest(&self) {
        let rank = self.resting.next.fetch_add(1, Ordering::Relaxed);
        self.rank.store(rank, Ordering::Relaxed);
        self.resting.with(|connections| connections.insert(rank, Arc::clone(&self.told)));
        self.resting.more.notify_waiters();
    }

    fn leave(&self) {
        let rank = self.rank.swap(ANSWERED, Ordering::Relaxed);
        self.resting.with(|connections| connections.remove(&rank));
    }

    /// From now until the returned is dropped, the connection is being answered.
    pub fn answer(&self) -> Answering {
        self.leave();
        Answering(self.clone())
    }
}

/// A connection is being answered.
#[derive(Debug)]
pub struct Answering(Seat);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// A body; as long as it is being sent, its connection is being answered.
#[derive(Debug)]
pub struct Sent {
    body: Body,
    _answering: Answering,
}

impl Sent {
    pub fn new(body: Body, answering: Answering) -> Self {
        Self { body, _answering: answering }
    }
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn who_has_rested_longest_goes_first() {
        let places = Places::new(2);
        let (first, second) = (places.take().await, places.take().await);
        // An answer is a new begin of its rest.
        drop(first.seat().answer());
        let taking = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        timeout(SOON, second.displaced()).await.expect("it goes");
        assert!(timeout(SOON, first.displaced()).await.is_err(), "one is enough");
        drop(second);
        taking.await.unwrap();
    }

    #[tokio::test]
    async fn who_is_being_answered_stays_until_he_rests() {
        let places = Places::new(1);
        let place = places.take().await;
        let answering = place.seat().answer();
        let taking = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        assert!(timeout(SOON, place.displaced()).await.is_err());
        drop(answering);
        timeout(SOON, place.displaced()).await.expect("it goes");
        drop(place);
        taking.await.unwrap();
        assert!(places.resting.with(|connections| connections.is_empty()));
    }

    #[tokio::test]
    async fn a_question_that_comes_when_a_place_is_to_be_given_up_is_answered() {
        let places = Places::new(1);
        let place = places.take().await;
        places.resting.displace();
        let answering = place.seat().answer();
        assert!(timeout(SOON, place.displaced()).await.is_err());
        drop(answering);
    }
}
