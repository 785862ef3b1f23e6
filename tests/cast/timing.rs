//! Whether two things take the same time: Welch's t test over interleaved samples.

use std::time::Duration;

/// From here on two means are told apart.
pub const LIMIT: f64 = 4.5;

/// Welch's t of two samples. The slowest tenth of each is left out: it measures what else runs on the
/// machine.
pub fn t(one: &[Duration], two: &[Duration]) -> f64 {
    let (one, two) = (Moments::of(one), Moments::of(two));
    (one.mean - two.mean) / (one.variance / one.count + two.variance / two.count).sqrt()
}

struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(sample: &[Duration]) -> Self {
        let mut sorted = sample.to_vec();
        sorted.sort_unstable();
        let kept: Vec<f64> = sorted[..sorted.len() * 9 / 10]
            .iter()
            .map(Duration::as_secs_f64)
            .collect();
        let count = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / count;
        let squares = kept.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        Self {
            count,
            mean,
            variance: squares / (count - 1.0),
        }
    }
}

/// Measures until two kinds cannot be told apart, five times at most: other work on the machine must
/// not pass for a leak, and a leak shows each time. Returns the last |t|.
pub fn quietest(mut measure: impl FnMut() -> (Vec<Duration>, Vec<Duration>)) -> f64 {
    let mut found = f64::MAX;
    for _ in 0..5 {
        let (one, two) = measure();
        found = t(&one, &two).abs();
        if found < LIMIT {
            break;
        }
    }
    found
}
