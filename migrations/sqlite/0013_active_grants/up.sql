-- A sign-in counts the active grants of the user at the client. Grants that ended stay for a while and are many, so
-- the index holds only active ones.
CREATE INDEX grants_active ON grants (user_id, client_id) WHERE ended_at IS NULL;
DROP INDEX grants_user;
