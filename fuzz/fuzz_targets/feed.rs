//! The formats of the revocation feed that subscribers and the server parse: records, frames, positions
//! and acknowledgements.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_verifier::{Ack, Frame, Frames, PACKED_BYTES, Position, Records};

fuzz_target!(|data: &[u8]| {
    if let Ok(records) = Records::unpack(data) {
        assert_eq!(records.pack(), data, "each list has one encoding");
        assert_eq!(records.0.len() * PACKED_BYTES, data.len());
        assert_eq!(Records::decode(&records.encode()), Ok(records));
    }
    if let Ok(frame) = serde_json::from_slice::<Frame>(data) {
        let json = serde_json::to_vec(&frame).expect("JSON");
        assert_eq!(serde_json::from_slice::<Frame>(&json).ok(), Some(frame));
    }
    if let Ok(ack) = serde_json::from_slice::<Ack>(data) {
        let json = serde_json::to_vec(&ack).expect("JSON");
        assert_eq!(serde_json::from_slice::<Ack>(&json).ok(), Some(ack));
    }
    let _ = serde_json::from_slice::<Frames>(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(records) = Records::decode(text) {
        assert_eq!(
            records.encode(),
            text,
            "each list has one encoding in base64"
        );
    }
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string(), text, "each position has one encoding");
    }
});
