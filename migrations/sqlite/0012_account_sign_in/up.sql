-- A sign-in that starts at the account page is an authorization without a client. SQLite cannot drop a constraint, so
-- the table is copied. No other table refers to it.

CREATE TABLE account_sign_in (
    id         TEXT   PRIMARY KEY,
    client_id  TEXT   REFERENCES clients (id),
    params     TEXT   NOT NULL,
    browser    BLOB,
    user_id    TEXT,
    sid        TEXT,
    state      TEXT   NOT NULL CHECK (state IN ('begun', 'signed_in', 'consented', 'denied')),
    scope      TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    taken_at   BIGINT,
    network    TEXT,
    login_sid  TEXT
);
INSERT INTO account_sign_in
    SELECT id, client_id, params, browser, user_id, sid, state, scope, created_at, expires_at, taken_at, network,
           login_sid
    FROM authorizations;
DROP TABLE authorizations;
ALTER TABLE account_sign_in RENAME TO authorizations;
CREATE INDEX authorizations_expiry ON authorizations (expires_at);
CREATE INDEX authorizations_network ON authorizations (network, id);
