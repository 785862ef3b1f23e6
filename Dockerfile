# The server alone: a slim Debian with libpq, an account without rights, nothing to write to but volumes.

FROM rust:1-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpq-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY benches ./benches
COPY crates ./crates
COPY migrations ./migrations
COPY templates ./templates
COPY src ./src
# The caches outlive a change of the sources; the binary is taken out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin portcullis \
 && install -m 755 target/release/portcullis /usr/local/bin/portcullis

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpq5 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --uid 10001 --user-group portcullis \
 # A fresh volume takes owner and mode of the folder that it covers.
 && install -d -o portcullis -g portcullis -m 700 \
        /var/lib/portcullis/kek /var/lib/portcullis/database \
 && install -d -o portcullis -g portcullis -m 755 /var/lib/portcullis/password
COPY --from=build /usr/local/bin/portcullis /usr/local/bin/portcullis
WORKDIR /var/lib/portcullis
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["portcullis"]
CMD ["serve"]
