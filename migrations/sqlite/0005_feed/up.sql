-- The feed: since when the longest life of access tokens is needed, whether the database was seen to
-- have gone back, and which instance of a subscriber has applied what.
ALTER TABLE feed_head ADD COLUMN longest_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE feed_head ADD COLUMN restored_at BIGINT;
CREATE INDEX revocations_expiry ON revocations (expires_at);

CREATE TABLE feed_acks (
    client_id TEXT   NOT NULL REFERENCES clients (id),
    instance  TEXT   NOT NULL,
    epoch     BIGINT NOT NULL,
    seq       BIGINT NOT NULL,
    kids      TEXT   NOT NULL,
    max_age   BIGINT,
    acked_at  BIGINT NOT NULL,
    PRIMARY KEY (client_id, instance)
);
