//! A mutex that is given in the order of asking. The standard one lets a thread that has just unlocked it take it again
//! at once, so that one session could compute hundreds of tokens while another waits for its next.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FairMutex<T> {
    queue: Queue,
    /// Locked only by the thread whose turn it is.
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    tickets: Mutex<Tickets>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Tickets {
    /// The number that the next caller draws.
    next: u64,
    /// The number whose turn it is.
    serving: u64,
}

/// Access to the value. The next caller has its turn when this is dropped.
pub(crate) struct FairGuard<'a, T> {
    // Fields are dropped in this order: the value is unlocked before the next number is called.
    value: MutexGuard<'a, T>,
    _turn: Turn<'a>,
}

/// Calls the next number when dropped.
struct Turn<'a>(&'a Queue);

impl<T> FairMutex<T> {
    /// Waits, blocked, for this caller's turn. A holder that panicked leaves the value as it was then.
    pub fn lock(&self) -> FairGuard<'_, T> {
        let turn = self.queue.wait();
        FairGuard { value: self.value.lock().unwrap_or_else(PoisonError::into_inner), _turn: turn }
    }
}

impl Queue {
    fn wait(&self) -> Turn<'_> {
        let mut tickets = self.tickets();
        let ticket = tickets.next;
        tickets.next += 1;
        let waiting = |tickets: &mut Tickets| tickets.serving != ticket;
        drop(self.called.wait_while(tickets, waiting).unwrap_or_else(PoisonError::into_inner));
        Turn(self)
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.tickets().serving += 1;
        self.0.called.notify_all();
    }
}

impl<T> Deref for FairGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for FairGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_get_the_lock_in_the_order_of_asking() {
        let mutex = FairMutex::<Vec<u64>>::default();
        std::thread::scope(|scope| {
            let held = mutex.lock();
            for caller in 1..=5 {
                let mutex = &mutex;
                scope.spawn(move || mutex.lock().push(caller));
                // The next caller comes when this one has drawn its number.
                while mutex.queue.tickets().next <= caller {
                    std::thread::yield_now();
                }
            }
            drop(held);
        });
        assert_eq!(*mutex.lock(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_holder_that_panics_gives_the_lock_on() {
        let mutex = FairMutex::<u32>::default();
        let outcome = crate::fence::fenced(|| {
            let mut held = mutex.lock();
            *held = 7;
            panic!("while holding");
        });
        assert_eq!(outcome, Err::<(), _>("while holding".to_owned()));
        assert_eq!(*mutex.lock(), 7);
    }
}
