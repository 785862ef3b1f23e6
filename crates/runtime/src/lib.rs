//! What the server and the guard have in common: log lines and the thread that writes them, durations,
//! addresses, names of variables and shutdown signals.

#![forbid(unsafe_code)]

mod address;
mod duration;
mod environment;
mod line;
mod log;
mod signals;
pub mod writer;

pub use address::Address;
pub use duration::HumanDuration;
pub use environment::misspelled_key;
pub use line::{Fields, is_hidden};
pub use log::{LogFormat, LogLines};
pub use signals::ShutdownSignals;

/// Implements `Serialize` through `Display` and `Deserialize` through `FromStr`.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_text;
