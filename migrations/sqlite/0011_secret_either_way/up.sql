-- Clients that may send their secret by HTTP Basic or in the form. A column of its own, because the previous
-- version cannot read another value of `auth_method`.
ALTER TABLE clients ADD COLUMN secret_either_way BOOLEAN NOT NULL DEFAULT 0;
