# Tasks for contributors. `just --list` shows them; each line also works by itself in a shell.

# Check formatting, lints and the layout of the sources, which every commit must pass.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --quiet -- -D warnings
    cargo test --workspace --features portcullis-verifier/actix --quiet --test layout --test language

# Run the tests whose name contains NAME, in all test programs. PostgreSQL tests need DATABASE_URL.
test NAME:
    cargo test --workspace --features portcullis-verifier/actix {{NAME}}

# Run one row or area of the attack catalogue, such as `just attack A189` or `just attack token-refresh`.
attack NAME:
    cargo test --workspace --features portcullis-verifier/actix --test attacks -- {{NAME}}

# Run all tests except those with a browser or client libraries, with a private PostgreSQL.
fast:
    tests/run fast

# Run all tests, as CI does.
all:
    tests/run

fmt:
    cargo fmt --all
