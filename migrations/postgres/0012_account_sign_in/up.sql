-- A sign-in that starts at the account page is an authorization without a client.

ALTER TABLE authorizations ALTER COLUMN client_id DROP NOT NULL;
