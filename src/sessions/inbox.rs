//! What other tasks tell a session. A channel of a crate would take 300 to 800 bytes while it is empty; this one takes 72.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use super::session::SessionInput;

/// The most inputs that wait for one session.
const MOST: usize = 64;

/// The inputs that wait for a session, which alone reads them.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
}

#[derive(Debug, Default)]
struct InboxState {
    /// Boxed, because few sessions have any, and a queue makes room for several at once.
    inputs: VecDeque<Box<SessionInput>>,
    reader: Option<Waker>,
    is_closed: bool,
}

impl Inbox {
    /// Gives an input to the session; returns whether it takes it.
    pub(super) fn tell(&self, input: SessionInput) -> bool {
        let mut state = self.lock();
        if state.is_closed || state.inputs.len() >= MOST {
            return false;
        }
        state.inputs.push_back(Box::new(input));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Takes nothing more. What has come can still be read.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Returns the next input, if one has come.
    pub(super) fn try_next(&self) -> Option<Box<SessionInput>> {
        self.lock().next()
    }

    /// Waits for the next input.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub(super) async fn next(&self) -> Box<SessionInput> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(input) = state.next() {
                return Poll::Ready(input);
            }
            match &mut state.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InboxState {
    fn next(&mut self) -> Option<Box<SessionInput>> {
        let input = self.inputs.pop_front();
        if self.inputs.is_empty() {
            // Most sessions are told nothing for a long time.
            self.inputs = VecDeque::new();
        }
        input
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::sessions::side::Side;

    fn side(input: Option<Box<SessionInput>>) -> Option<Side> {
        match *input? {
            SessionInput::Gone(side) => Some(side),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn inputs_are_read_in_their_order_and_no_more_than_a_bound_are_taken() {
        let inbox = Inbox::default();
        assert!(inbox.tell(SessionInput::Gone(Side::Responder)));
        let others = (1..MOST).filter(|_| inbox.tell(SessionInput::Gone(Side::Initiator)));
        assert_eq!(others.count(), MOST - 1);
        assert!(!inbox.tell(SessionInput::Check), "it is full");
        assert_eq!(side(inbox.try_next()), Some(Side::Responder));
        assert!(inbox.tell(SessionInput::Gone(Side::Initiator)), "one has been read");
        let rest = std::iter::from_fn(|| side(inbox.try_next()));
        assert!(rest.eq([Side::Initiator; MOST]));
    }

    #[test]
    fn a_closed_inbox_takes_nothing_and_gives_what_it_has() {
        let inbox = Inbox::default();
        assert!(inbox.tell(SessionInput::Gone(Side::Initiator)));
        inbox.close();
        assert!(!inbox.tell(SessionInput::Check));
        assert_eq!(side(inbox.try_next()), Some(Side::Initiator));
        assert!(inbox.try_next().is_none());
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let inbox = std::sync::Arc::new(Inbox::default());
        assert!(inbox.next().now_or_never().is_none());
        let reader = tokio::spawn({
            let inbox = std::sync::Arc::clone(&inbox);
            async move { side(Some(inbox.next().await)) }
        });
        tokio::task::yield_now().await;
        assert!(inbox.tell(SessionInput::Gone(Side::Responder)));
        assert_eq!(reader.await.unwrap(), Some(Side::Responder));
    }
}
