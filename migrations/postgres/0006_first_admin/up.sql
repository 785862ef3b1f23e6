-- Who administers, for good or for a while, and the one-time links by which the first one is made.
CREATE TABLE user_roles (
    user_id    TEXT   NOT NULL REFERENCES users (id),
    role       TEXT   NOT NULL,
    granted_by TEXT   NOT NULL CHECK (granted_by IN ('setup', 'bootstrap', 'operator')),
    granted_at BIGINT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (user_id, role)
);
-- However many nodes and links there are: one first administrator.
CREATE UNIQUE INDEX user_roles_setup ON user_roles (role) WHERE granted_by = 'setup';

CREATE TABLE setup_links (
    hash       BYTEA   PRIMARY KEY,
    browser    BYTEA   UNIQUE,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT
);
CREATE INDEX setup_links_expiry ON setup_links (expires_at);
