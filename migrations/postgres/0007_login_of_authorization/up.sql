-- The login that was done for an authorization. Only it waives `prompt=login` and `max_age` (OIDC Core
-- §3.1.2.1); `sid` also names a login that was there before, in which the user gave consent.
ALTER TABLE authorizations ADD COLUMN login_sid TEXT;
