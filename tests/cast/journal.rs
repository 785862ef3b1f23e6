//! What went over the wire in this thread, for what must hold of every answer.

use std::cell::RefCell;
use std::time::Duration;

use super::browser::Answer;

/// A request and what came back.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub body: Option<String>,
    pub answer: Answer,
    pub took: Duration,
}

thread_local! {
    static EXCHANGES: RefCell<Option<Vec<Exchange>>> = const { RefCell::new(None) };
}

/// Writes down from now on.
pub fn begin() {
    EXCHANGES.set(Some(Vec::new()));
}

/// Everything since [`begin`].
pub fn end() -> Vec<Exchange> {
    EXCHANGES.take().unwrap_or_default()
}

/// Strikes out what a test expects and need not hold for all answers.
pub fn strike_out(expected: impl Fn(&Exchange) -> bool) {
    EXCHANGES.with_borrow_mut(|exchanges| {
        if let Some(exchanges) = exchanges {
            exchanges.retain(|exchange| !expected(exchange));
        }
    });
}

/// Writes an exchange down, if anybody asked for it.
pub fn note(exchange: impl FnOnce() -> Exchange) {
    EXCHANGES.with_borrow_mut(|exchanges| {
        if let Some(exchanges) = exchanges {
            exchanges.push(exchange());
        }
    });
}
