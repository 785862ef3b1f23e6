-- Throttles of sign-in and client authentication, shared by all nodes; browsers that signed in before;
-- whose authorizations are open; networks of clients.

CREATE TABLE throttles (
    key         TEXT   PRIMARY KEY,
    failures    BIGINT NOT NULL,
    in_a_row    BIGINT NOT NULL,
    attempts    BIGINT NOT NULL,
    window_ends BIGINT NOT NULL,
    next_at     BIGINT NOT NULL,
    last_at     BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL
);
CREATE INDEX throttles_expiry ON throttles (expires_at);

CREATE TABLE known_devices (
    id_hash    BLOB   NOT NULL,
    user_id    TEXT   NOT NULL REFERENCES users (id),
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (id_hash, user_id)
);
CREATE INDEX known_devices_expiry ON known_devices (expires_at);

ALTER TABLE authorizations ADD COLUMN network TEXT;
CREATE INDEX authorizations_network ON authorizations (network, id);

ALTER TABLE clients ADD COLUMN allow_networks TEXT NOT NULL DEFAULT '[]';
ALTER TABLE clients ADD COLUMN deny_networks TEXT NOT NULL DEFAULT '[]';
