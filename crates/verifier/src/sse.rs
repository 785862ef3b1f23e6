//! A parser for the parts of server-sent events that the feed uses (HTML Living Standard §9.2):
//! `data` and `retry`.

use std::time::Duration;

use crate::frame::FRAME_MAX_BYTES;

/// Maximum size of an event: the largest frame and the other fields.
const MAX_EVENT_BYTES: usize = FRAME_MAX_BYTES + 4096;

/// Assembles events from the chunks of a stream.
#[derive(Default)]
pub(crate) struct EventParser {
    /// The received part of the current line.
    line: Vec<u8>,
    /// The `data` of the current event.
    data: String,
    /// Whether the last chunk ended with a carriage return, so that a line feed at the start of the
    /// next one belongs to the same line ending.
    after_return: bool,
    /// Delay before the next connection, if the server has sent one.
    pub(crate) retry: Option<Duration>,
}

/// Error of a stream that is not UTF-8 or has an event that is too large.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream contains an invalid event")]
pub(crate) struct StreamError;

impl EventParser {
    /// Parses the next chunk, and returns the data of each event that it completes.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<String>, StreamError> {
        let mut events = Vec::new();
        let mut rest = chunk;
        if self.after_return && rest.first() == Some(&b'\n') {
            rest = &rest[1..];
        }
        if !chunk.is_empty() {
            self.after_return = false;
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.line.extend_from_slice(&rest[..end]);
            let line = std::mem::take(&mut self.line);
            events.extend(self.process_line(&line)?);
            let is_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            match rest.first() {
                Some(b'\n') if is_return => rest = &rest[1..],
                None => self.after_return = is_return,
                _ => {}
            }
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
            return Err(StreamError);
        }
        Ok(events)
    }

    fn process_line(&mut self, line: &[u8]) -> Result<Option<String>, StreamError> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return Ok((!data.is_empty()).then_some(data));
        }
        let line = std::str::from_utf8(line).map_err(|_| StreamError)?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.data.push_str(value),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis),
            // A comment, an unknown field, or an id, which is not needed because the frames contain
            // their position.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\r\nretry: 1500\nid: 1:2\ndata: a.b.c\n\nevent: x\rdata:d.e.f\r\r\r\ndata: g\ndata: h\n\nid: 9\n\ndata: unfinished\n";

    #[test]
    fn events_are_parsed_for_every_chunk_size() {
        for size in 1..=STREAM.len() {
            let mut events = EventParser::default();
            let mut all = Vec::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                all.extend(events.push(chunk).unwrap());
            }
            assert_eq!(all, ["a.b.c", "d.e.f", "gh"], "chunks of {size}");
            assert_eq!(events.retry, Some(Duration::from_millis(1500)));
        }
    }

    #[test]
    fn endless_line_is_rejected() {
        let mut events = EventParser::default();
        let chunk = vec![b'x'; 1024 * 1024];
        let outcome = (0..8).try_for_each(|_| events.push(&chunk).map(|_| ()));
        assert_eq!(outcome, Err(StreamError));
    }

    #[test]
    fn non_utf8_line_is_rejected() {
        assert_eq!(
            EventParser::default().push(b"data: \xff\n\n"),
            Err(StreamError)
        );
    }
}
