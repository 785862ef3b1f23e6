-- What a client is besides an application: a resource server that may ask about tokens of its own
-- audiences; signed userinfo; a tombstone once it is deleted.
ALTER TABLE clients ADD COLUMN serves TEXT NOT NULL DEFAULT '[]';
ALTER TABLE clients ADD COLUMN userinfo_alg TEXT CHECK (userinfo_alg IN ('RS256', 'ES256'));
ALTER TABLE clients ADD COLUMN deleted_at BIGINT;
