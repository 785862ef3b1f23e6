//! A thread writes the log. A reader that stands still costs lines, which are counted, and never a
//! request's time; what waits is bounded.

use std::io::{Result, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that may wait; one has some 200 bytes.
const ROOM: usize = 4096;
/// How long the end of the process waits for its last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between looks whether they are written.
const LOOK: Duration = Duration::from_millis(5);

static LINES: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
/// Of the lines, those that wait or are being written.
static WAITING: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Where log lines go, each in one piece.
#[derive(Clone, Copy)]
pub struct Lines;

impl Lines {
    /// Starts the thread.
    pub fn start() -> Self {
        LINES.get_or_init(|| {
            let (lines, waiting) = sync_channel(ROOM);
            thread::spawn(move || write_all(&waiting));
            lines
        });
        Self
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> Result<usize> {
        push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How many lines were given up, since nobody read those before them.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The last words of the process, after all that it logged. Who does not listen for two seconds
/// misses them.
pub fn say(words: &str) {
    if LINES.get().is_some() {
        push(format!("{words}\n").into_bytes());
    } else {
        eprintln!("{words}");
    }
}

/// Waits until everything is written, two seconds at most.
pub fn flush() {
    let begin = Instant::now();
    while WAITING.load(Ordering::Acquire) > 0 && begin.elapsed() < LAST_WORDS {
        thread::sleep(LOOK);
    }
}

fn push(line: Vec<u8>) {
    let Some(lines) = LINES.get() else {
        return;
    };
    WAITING.fetch_add(1, Ordering::AcqRel);
    if lines.try_send(line).is_err() {
        WAITING.fetch_sub(1, Ordering::AcqRel);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn write_all(lines: &Receiver<Vec<u8>>) {
    let mut told = 0;
    while let Ok(line) = lines.recv() {
        // Nobody is left to tell when stderr is gone.
        let _ = std::io::stderr().write_all(&line);
        let dropped = dropped();
        if WAITING.load(Ordering::Acquire) == 1 && dropped > told {
            tracing::error!(
                event = "log.dropped",
                reason = "slow_reader",
                lines = dropped - told
            );
            told = dropped;
        }
        // After what is to be told, so that the end waits for it, too.
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}
