//! A thread writes the lines. A reader that stands still costs lines, which are counted, and never a
//! request's time; what waits is bounded.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::metrics::LOG_DROPPED;

/// Bytes that may wait before access lines are given up.
const ACCESS_ROOM: usize = 1024 * 1024;
/// Bytes that may wait before every line is.
const ROOM: usize = 8 * 1024 * 1024;
/// Bytes that are written at once.
const BATCH: usize = 64 * 1024;
/// How long the end of the process waits for its last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);

struct Queue {
    lines: VecDeque<String>,
    /// Of the lines that wait, and of those that are being written.
    bytes: usize,
    /// Lines given up since the last line that says so.
    dropped: u64,
    started: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    lines: VecDeque::new(),
    bytes: 0,
    dropped: 0,
    started: false,
});
static NEWS: Condvar = Condvar::new();
static DONE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread.
pub(super) fn start() {
    let mut queue = queue();
    if !std::mem::replace(&mut queue.started, true) {
        std::thread::spawn(write_for_ever);
    }
}

/// Hands over a line. It is given up when too much waits already.
pub(super) fn push(line: String, access: bool) {
    let (room, kind) = match access {
        true => (ACCESS_ROOM, "access"),
        false => (ROOM, "event"),
    };
    let mut queue = queue();
    if queue.bytes + line.len() > room {
        queue.dropped += 1;
        drop(queue);
        LOG_DROPPED.count([kind.into()]);
        return;
    }
    queue.bytes += line.len();
    queue.lines.push_back(line);
    drop(queue);
    NEWS.notify_one();
}

/// Waits until everything is written, two seconds at most.
pub fn flush() {
    let queue = queue();
    if queue.started {
        let _ = DONE.wait_timeout_while(queue, LAST_WORDS, |queue| queue.bytes > 0);
    }
}

fn write_for_ever() {
    let mut batch = String::new();
    loop {
        let mut waiting = NEWS
            .wait_while(queue(), |queue| queue.lines.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        batch.clear();
        while batch.len() < BATCH
            && let Some(line) = waiting.lines.pop_front()
        {
            batch.push_str(&line);
        }
        drop(waiting);
        // Nobody is left to tell when stderr is gone.
        let _ = std::io::stderr().write_all(batch.as_bytes());
        let mut after = queue();
        after.bytes -= batch.len();
        let given_up = match after.bytes {
            0 => std::mem::take(&mut after.dropped),
            _ => 0,
        };
        drop(after);
        if given_up > 0 {
            tracing::error!(
                event = "log.dropped",
                reason = "slow_reader",
                severity = "high",
                lines = given_up,
                "these lines were given up since the last ones: nobody read the log"
            );
        }
        DONE.notify_all();
    }
}
