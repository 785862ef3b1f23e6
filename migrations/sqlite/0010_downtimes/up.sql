-- The times in which no server ran on this database. A genuine token that was issued in one of them
-- shows that the database was restored from an older copy.
CREATE TABLE downtimes (
    began BIGINT PRIMARY KEY,
    ended BIGINT NOT NULL
);
