# The server on a slim Debian with libpq, under an unprivileged account that can write to volumes only.

FROM rust:1-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpq-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY benches ./benches
COPY crates ./crates
COPY migrations ./migrations
COPY templates ./templates
COPY src ./src
# The caches are kept when the sources change, so the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin portcullis \
 && install -m 755 target/release/portcullis /usr/local/bin/portcullis

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpq5 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --uid 10001 --user-group portcullis \
# A new volume gets the owner and mode of the directory that it covers.
 && install -d -o portcullis -g portcullis -m 700 \
        /var/lib/portcullis/kek /var/lib/portcullis/database \
 && install -d -o portcullis -g portcullis -m 755 /var/lib/portcullis/password
COPY --from=build /usr/local/bin/portcullis /usr/local/bin/portcullis
WORKDIR /var/lib/portcullis
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["portcullis"]
CMD ["serve"]
