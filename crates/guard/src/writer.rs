//! Writes the log on a separate thread, through a bounded queue.
//!
//! If stderr blocks because its reader is too slow, lines are dropped and counted. Requests never
//! wait for the log.

use std::io::{Result, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Capacity of the queue, in lines of about 200 bytes.
const QUEUE_LINES: usize = 4096;
/// Maximum time that [`flush`] waits for queued lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which [`flush`] checks the queue.
const FLUSH_POLL: Duration = Duration::from_millis(5);

static LINES: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
/// Number of lines that are queued or being written.
static PENDING: AtomicUsize = AtomicUsize::new(0);
/// Number of lines that were dropped because the queue was full.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Queues log lines for the writer thread. Each `write` must be one complete line.
#[derive(Clone, Copy)]
pub struct LogWriter;

impl LogWriter {
    /// Starts the writer thread on the first call.
    pub fn start() -> Self {
        LINES.get_or_init(|| {
            let (lines, queue) = sync_channel(QUEUE_LINES);
            thread::spawn(move || write_lines(&queue));
            lines
        });
        Self
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> Result<usize> {
        push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Returns the number of lines that were dropped because the queue was full.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Writes the final message of the process, after all lines that are queued. It is lost if stderr
/// is blocked for the two seconds that [`flush`] waits.
pub fn write_last_line(message: &str) {
    if LINES.get().is_some() {
        push(format!("{message}\n").into_bytes());
    } else {
        eprintln!("{message}");
    }
}

/// Waits until all queued lines are written, for at most two seconds.
pub fn flush() {
    let start = Instant::now();
    while PENDING.load(Ordering::Acquire) > 0 && start.elapsed() < FLUSH_TIMEOUT {
        thread::sleep(FLUSH_POLL);
    }
}

fn push(line: Vec<u8>) {
    let Some(lines) = LINES.get() else {
        return;
    };
    PENDING.fetch_add(1, Ordering::AcqRel);
    if lines.try_send(line).is_err() {
        PENDING.fetch_sub(1, Ordering::AcqRel);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn write_lines(queue: &Receiver<Vec<u8>>) {
    let mut reported = 0;
    while let Ok(line) = queue.recv() {
        // If stderr is closed, there is no other place to report the error.
        let _ = std::io::stderr().write_all(&line);
        let dropped = dropped_lines();
        if PENDING.load(Ordering::Acquire) == 1 && dropped > reported {
            tracing::error!(
                event = "log.dropped",
                reason = "slow_reader",
                lines = dropped - reported
            );
            reported = dropped;
        }
        // After the report, so that `flush` waits for the report as well.
        PENDING.fetch_sub(1, Ordering::AcqRel);
    }
}
