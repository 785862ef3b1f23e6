//! Writes log lines to stderr on a separate thread, through a bounded queue.
//!
//! If stderr blocks because its reader is too slow, lines are dropped and counted. The threads that log
//! never wait.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The target of access lines. They are the first to be dropped.
pub const ACCESS: &str = "access";

/// Maximum number of bytes per write.
const BATCH_BYTES: usize = 64 * 1024;
/// Maximum time that [`flush`] waits for queued lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The bounds of the queue, and the functions that report dropped lines.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Maximum number of queued lines.
    pub lines: usize,
    /// Maximum number of queued bytes.
    pub bytes: usize,
    /// Number of queued bytes from which access lines are dropped.
    pub access_bytes: usize,
    /// Called for each dropped line.
    pub count_dropped: fn(LineKind),
    /// Called with the number of lines that were dropped since the previous call, once the queue is
    /// empty again.
    pub report_dropped: fn(u64),
}

/// The kind of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// A line of the access log.
    Access,
    /// Any other line.
    Event,
}

impl LineKind {
    pub(crate) fn of_target(target: &str) -> Self {
        if target == ACCESS {
            Self::Access
        } else {
            Self::Event
        }
    }
}

struct Queue {
    lines: VecDeque<String>,
    /// Number and total size of the lines that are queued or being written.
    pending_lines: usize,
    pending_bytes: usize,
    /// Number of lines that were dropped since the last report.
    dropped: u64,
    /// `None` until the thread is started.
    settings: Option<Settings>,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    lines: VecDeque::new(),
    pending_lines: 0,
    pending_bytes: 0,
    dropped: 0,
    settings: None,
});
static QUEUED: Condvar = Condvar::new();
static WRITTEN: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the writer thread on the first call.
pub fn start(settings: Settings) {
    let mut queue = queue();
    if queue.settings.replace(settings).is_none() {
        std::thread::spawn(move || write_lines(settings));
    }
}

/// Queues a line, which must end with a newline, or drops it if the queue is full or the thread is not
/// started.
pub fn push(line: String, kind: LineKind) {
    let mut queue = queue();
    let Some(settings) = queue.settings else {
        return;
    };
    let max_bytes = match kind {
        LineKind::Access => settings.access_bytes,
        LineKind::Event => settings.bytes,
    };
    let bytes = queue.pending_bytes.saturating_add(line.len());
    if bytes > max_bytes || queue.pending_lines >= settings.lines {
        queue.dropped += 1;
        drop(queue);
        (settings.count_dropped)(kind);
        return;
    }
    queue.pending_bytes = bytes;
    queue.pending_lines += 1;
    queue.lines.push_back(line);
    drop(queue);
    QUEUED.notify_one();
}

/// Writes the final message of the process, after all queued lines. The message is lost if stderr is
/// blocked for the two seconds that [`flush`] waits.
pub fn write_last_line(message: &str) {
    let is_started = queue().settings.is_some();
    if is_started {
        push(format!("{message}\n"), LineKind::Event);
    } else {
        eprintln!("{message}");
    }
}

/// Waits until all queued lines are written, for at most two seconds.
pub fn flush() {
    let queue = queue();
    if queue.settings.is_some() {
        let _ = WRITTEN.wait_timeout_while(queue, FLUSH_TIMEOUT, |queue| queue.pending_bytes > 0);
    }
}

fn write_lines(settings: Settings) {
    let mut batch = String::new();
    loop {
        let mut queued = QUEUED
            .wait_while(queue(), |queue| queue.lines.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        batch.clear();
        let mut lines = 0;
        while batch.len() < BATCH_BYTES
            && let Some(line) = queued.lines.pop_front()
        {
            batch.push_str(&line);
            lines += 1;
        }
        drop(queued);
        // If stderr is closed, there is no other place to report the error.
        let _ = std::io::stderr().write_all(batch.as_bytes());
        let mut queue = queue();
        // Read before the written lines are subtracted, so that `flush` waits for the report as well.
        let dropped = match queue.pending_bytes == batch.len() {
            true => std::mem::take(&mut queue.dropped),
            false => 0,
        };
        if dropped > 0 {
            drop(queue);
            (settings.report_dropped)(dropped);
            queue = self::queue();
        }
        queue.pending_bytes -= batch.len();
        queue.pending_lines -= lines;
        drop(queue);
        WRITTEN.notify_all();
    }
}
