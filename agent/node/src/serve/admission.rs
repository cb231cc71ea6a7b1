//! How many bytes of request bodies are in memory at once.
//!
//! The queue of the engine counts tokens, which are known only once a body has been read, parsed and tokenized. Until
//! then its bytes are counted here, as its head announces them, so that any number of large bodies wait outside, in
//! the sockets of their senders.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bodies of the largest size that are held at once: one for each thread that tokenizes.
const LARGEST_BODIES: u64 = super::BLOCKING_THREADS_MAX as u64;

/// The bytes that are let in.
#[derive(Debug)]
pub(crate) struct Admission {
    taken: AtomicU64,
    limit: u64,
}

/// Bytes of one body; given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    bytes: u64,
}

impl Admission {
    /// `body_max` is the size of the largest body.
    pub(crate) fn new(body_max: u64) -> Admission {
        Admission { taken: AtomicU64::new(0), limit: body_max.saturating_mul(LARGEST_BODIES) }
    }

    /// Lets a body of at most the largest size in; nothing when there is no room.
    pub(crate) fn enter(self: &Arc<Self>, bytes: u64) -> Option<Admitted> {
        let room = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let entered = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room);
        entered.ok().map(|_| Admitted { admission: Arc::clone(self), bytes })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.taken.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_enter_while_there_is_room_and_give_it_back() {
        let admission = Arc::new(Admission::new(10));
        let held: Vec<_> = (0..LARGEST_BODIES).map(|_| admission.enter(10).unwrap()).collect();
        assert!(admission.enter(1).is_none());
        assert!(admission.enter(0).is_some(), "a request without a body waits for nobody");
        drop(held);
        assert!(admission.enter(u64::MAX).is_none());
        assert!(admission.enter(10).is_some());
    }
}
