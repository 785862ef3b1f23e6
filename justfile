# Tasks for contributors. `just --list` shows them; each line also works by itself in a shell.

# Formatting, lints and the layout of the sources: what a commit must pass.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --quiet -- -D warnings
    cargo test --workspace --features portcullis-verifier/actix --quiet --test layout --test language

# Tests whose name contains NAME, in all test programs. PostgreSQL rows need DATABASE_URL.
test NAME:
    cargo test --workspace --features portcullis-verifier/actix {{NAME}}

# One row or area of the attack catalogue, such as `just attack A189` or `just attack token-refresh`.
attack NAME:
    cargo test --workspace --features portcullis-verifier/actix --test attacks -- {{NAME}}

# Everything but the browser and the client libraries, with a private PostgreSQL.
fast:
    tests/run fast

# Everything, as CI runs it.
all:
    tests/run

fmt:
    cargo fmt --all
