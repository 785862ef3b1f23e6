//! Server-sent events, as much as the feed uses (HTML Living Standard §9.2): `data` and `retry`.

use std::time::Duration;

use crate::frame::FRAME_MAX_BYTES;

/// Room for the largest frame, and for what else may stand in its event.
const MAX_EVENT_BYTES: usize = FRAME_MAX_BYTES + 4096;

/// Puts the chunks of a stream together to events.
#[derive(Default)]
pub(crate) struct Events {
    /// What has come of the line that is not over.
    line: Vec<u8>,
    /// The `data` of the event that is not over.
    data: String,
    /// The last chunk ended with a carriage return, so a line feed now belongs to it.
    after_return: bool,
    /// How long to wait before the next connection, if the server said so.
    pub(crate) retry: Option<Duration>,
}

/// A stream that sends no events that we can use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream sends what is no event of the feed")]
pub(crate) struct Garbled;

impl Events {
    /// Takes the next chunk; gives the data of each event that it ended.
    pub(crate) fn take(&mut self, chunk: &[u8]) -> Result<Vec<String>, Garbled> {
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
            events.extend(self.line_ended(&line)?);
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
            return Err(Garbled);
        }
        Ok(events)
    }

    fn line_ended(&mut self, line: &[u8]) -> Result<Option<String>, Garbled> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return Ok((!data.is_empty()).then_some(data));
        }
        let line = std::str::from_utf8(line).map_err(|_| Garbled)?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.data.push_str(value),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis),
            // A comment, an id (we know our position from the frames) or something unknown.
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
    fn events_come_out_however_they_are_cut() {
        for size in 1..=STREAM.len() {
            let mut events = Events::default();
            let mut all = Vec::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                all.extend(events.take(chunk).unwrap());
            }
            assert_eq!(all, ["a.b.c", "d.e.f", "gh"], "chunks of {size}");
            assert_eq!(events.retry, Some(Duration::from_millis(1500)));
        }
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let mut events = Events::default();
        let chunk = vec![b'x'; 1024 * 1024];
        let outcome = (0..8).try_for_each(|_| events.take(&chunk).map(|_| ()));
        assert_eq!(outcome, Err(Garbled));
    }

    #[test]
    fn what_is_no_text_is_no_event() {
        assert_eq!(Events::default().take(b"data: \xff\n\n"), Err(Garbled));
    }
}
