-- The issuer of the last server on this database, so that a command with another configuration can warn. One
-- installation has one issuer, so there is one row.
CREATE TABLE served_issuer (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    issuer TEXT NOT NULL,
    since BIGINT NOT NULL
);
