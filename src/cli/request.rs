//! Requests of commands to a server: why one failed, in one clause.

use std::error::Error;
use std::io;

/// Describes why a request got no response. Library errors nest several levels that all say the same.
pub fn explain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "there is no response in time".to_owned();
    }
    let mut deepest: &dyn Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            "no program listens there".to_owned()
        }
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
            "the connection was closed".to_owned()
        }
        _ => deepest.to_string(),
    }
}
