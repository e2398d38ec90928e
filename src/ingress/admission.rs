//! Memory, given out by bytes before a body is read.
//!
//! Two lanes share the byte budget, each with a part of its own: bodies up to the small lane's limit wait only for each
//! other, so statements of many megabytes never delay or starve a 300-byte Pay event. Within a lane, first come is
//! first served. Whoever waits holds nothing: a body whose size is declared is admitted whole, and one without
//! (chunked) may wait for its first step only; a later step is there at once or refused. So no two bodies can each
//! hold what the other waits for.
//!
//! A body's bytes are held by its [`Permit`] from admission until the delivery report, also when the sender hangs up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::metrics::{Held, Lane, Metrics};

/// The byte budget of both lanes.
pub struct Admission {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    small_body: usize,
    body_limit: usize,
    wait: Duration,
    metrics: Metrics,
}

/// The budget had no room for the body in time.
#[derive(Debug, PartialEq, Eq)]
pub struct NoBudget;

impl Admission {
    /// A budget as configured, all of it free.
    pub fn new(limits: &config::Ingress, metrics: Metrics) -> Admission {
        let (small, large) = (limits.small_reserve, limits.bytes_in_flight - limits.small_reserve);
        metrics.budget(Lane::Small, small);
        metrics.budget(Lane::Large, large);
        Admission {
            small: Arc::new(Semaphore::new(small)),
            large: Arc::new(Semaphore::new(large)),
            small_body: limits.small_body,
            body_limit: limits.body_limit,
            wait: limits.admission_wait,
            metrics,
        }
    }

    /// The lane of a body of this many bytes.
    pub fn lane(&self, bytes: usize) -> Lane {
        if bytes <= self.small_body { Lane::Small } else { Lane::Large }
    }

    /// Admits a body of a declared size, or the first step of one without; waits for room up to the admission wait.
    ///
    /// # Errors
    /// [`NoBudget`] after that wait.
    pub async fn admit(self: &Arc<Self>, declared: Option<usize>) -> Result<Permit, NoBudget> {
        let bytes = declared.unwrap_or(self.small_body);
        let lane = self.lane(bytes);
        let semaphore = self.semaphore(lane).clone();
        let share = match semaphore.clone().try_acquire_many_owned(units(bytes)) {
            Ok(share) => share,
            Err(_) => {
                let _waiting = self.metrics.admission_waiting(lane);
                let turn = tokio::time::timeout(self.wait, semaphore.acquire_many_owned(units(bytes))).await;
                turn.map_err(|_| NoBudget)?.expect("the semaphores are never closed")
            }
        };
        Ok(Permit { admission: self.clone(), lane, share, held: self.metrics.admitted(lane, bytes) })
    }

    fn semaphore(&self, lane: Lane) -> &Arc<Semaphore> {
        match lane {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        }
    }
}

/// A body's share of the budget, given back when dropped.
pub struct Permit {
    admission: Arc<Admission>,
    lane: Lane,
    share: OwnedSemaphorePermit,
    held: Held,
}

impl Permit {
    /// Bytes that the body may have so far.
    pub fn bytes(&self) -> usize {
        self.share.num_permits()
    }

    /// Grows the share of a body of unknown size so that at least `needed` bytes fit: doubled, so that a body of any
    /// size takes few steps, and never beyond the body limit. Takes what is free in the large lane now, or refuses. A
    /// body that outgrows the small lane leaves it, so that it holds nothing that small bodies wait for.
    ///
    /// # Errors
    /// [`NoBudget`] where the large lane has no room.
    pub fn grow(&mut self, needed: usize) -> Result<(), NoBudget> {
        let doubled = (self.bytes() * 2).min(self.admission.body_limit).max(needed);
        let of_large = |bytes| self.admission.large.clone().try_acquire_many_owned(units(bytes)).map_err(|_| NoBudget);
        match self.lane {
            Lane::Small => {
                self.share = of_large(doubled)?;
                self.held = self.admission.metrics.admitted(Lane::Large, doubled);
                self.lane = Lane::Large;
            }
            Lane::Large => {
                let more = doubled - self.bytes();
                self.share.merge(of_large(more)?);
                self.held.grow(more);
            }
        }
        Ok(())
    }
}

/// The semaphores count single bytes. A body is at most 900 MB by configuration, far below what 32 bits hold.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the body limit is below 4 GiB")
}
