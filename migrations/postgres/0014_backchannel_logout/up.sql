-- Back-channel logout: where clients are told that a session has ended, and the notifications that are still to be
-- sent. One row is one session at one client.
ALTER TABLE clients ADD COLUMN backchannel_logout_uri TEXT;
ALTER TABLE clients ADD COLUMN backchannel_logout_session_required BOOLEAN NOT NULL DEFAULT FALSE;
CREATE TABLE logout_notifications (
    client_id  TEXT   NOT NULL,
    sid        TEXT   NOT NULL,
    user_id    TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    attempts   BIGINT NOT NULL DEFAULT 0,
    -- When the next attempt is due. NULL: given up.
    next_at    BIGINT,
    PRIMARY KEY (client_id, sid)
);
CREATE INDEX logout_notifications_due ON logout_notifications (next_at);
CREATE INDEX logout_notifications_sid ON logout_notifications (sid);
