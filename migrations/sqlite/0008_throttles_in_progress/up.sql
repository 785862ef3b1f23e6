-- Throttles tell attempts whose outcome is open from failures, and name the user whose attempts they
-- count, so that a new password clears them. No foreign key: a counter may outlive its user.
ALTER TABLE throttles ADD COLUMN user_id TEXT;
ALTER TABLE throttles ADD COLUMN in_progress BIGINT NOT NULL DEFAULT 0;
ALTER TABLE throttles ADD COLUMN in_progress_until BIGINT NOT NULL DEFAULT 0;
CREATE INDEX throttles_user ON throttles (user_id);
