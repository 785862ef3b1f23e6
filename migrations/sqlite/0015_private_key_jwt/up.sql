-- Clients that authenticate by an assertion that they sign (private_key_jwt). A column of its own, because the
-- previous version cannot read another value of `auth_method`. Each assertion is accepted once.
ALTER TABLE clients ADD COLUMN assertion_auth BOOLEAN NOT NULL DEFAULT 0;
ALTER TABLE clients ADD COLUMN assertion_alg TEXT;
ALTER TABLE clients ADD COLUMN assertion_audience TEXT NOT NULL DEFAULT 'issuer';
ALTER TABLE clients ADD COLUMN jwks TEXT;
CREATE TABLE used_assertions (
    client_id  TEXT   NOT NULL,
    jti        BLOB    NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (client_id, jti)
);
CREATE INDEX used_assertions_expiry ON used_assertions (expires_at);
