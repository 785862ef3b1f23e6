-- The keyed chain over the audit events, made after their commit. A seal covers the event and the
-- seal before it. A waiting event has none yet; the events themselves stay insert-only.
CREATE TABLE audit_seals (
    seq      BIGINT PRIMARY KEY,
    event_id TEXT   NOT NULL UNIQUE,
    mac      BYTEA  NOT NULL
);

CREATE TABLE audit_waiting (
    event_id TEXT PRIMARY KEY
);
INSERT INTO audit_waiting (event_id) SELECT id FROM audit_events;
