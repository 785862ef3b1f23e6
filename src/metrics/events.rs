//! The names of all log events of the server, the verifier and the guard. `docs/operations.md` and `docs/guard.md`
//! explain them; the names of audit events are in [`crate::audit::Name`].

/// A log event.
#[derive(Clone, Copy, Debug)]
pub struct LogEvent {
    /// Its name, a stable part of the log format.
    pub name: &'static str,
    /// The severities above `normal` with which it is logged.
    pub severities: &'static [&'static str],
    /// The check of `portcullis doctor` that finds the condition. `None` for an occurrence that leaves no state, and
    /// for events without a severity.
    pub doctor: Option<&'static str>,
}

const fn normal(name: &'static str) -> LogEvent {
    LogEvent {
        name,
        severities: &[],
        doctor: None,
    }
}

const fn high(name: &'static str, doctor: Option<&'static str>) -> LogEvent {
    LogEvent {
        name,
        severities: &["high"],
        doctor,
    }
}

const fn critical(name: &'static str, doctor: Option<&'static str>) -> LogEvent {
    LogEvent {
        name,
        severities: &["critical"],
        doctor,
    }
}

/// All log events, by name.
pub const LOG_EVENTS: &[LogEvent] = &[
    normal("admin.bootstrap"),
    normal("admin.bootstrap_refused"),
    normal("admin.denied"),
    normal("admin.none"),
    critical("audit.tampered", Some("audit log")),
    normal("audit.unmarked"),
    high("audit.unsealed", Some("audit log")),
    normal("authorization.answered"),
    normal("authorization.binding_failed"),
    normal("authorization.expired"),
    normal("authorization.replay"),
    normal("authz.rejected"),
    normal("bearer.rejected"),
    normal("client.auth_failed"),
    high("code.client_mismatch", None),
    high("code.replay", None),
    normal("config.ignored"),
    normal("config.other_issuer"),
    high("config.rejected", Some("configuration")),
    normal("config.reloaded"),
    normal("config.restart_needed"),
    normal("config.value"),
    normal("consent.denied"),
    normal("consent.given"),
    normal("consent.prompted"),
    normal("consent.revoked"),
    normal("consent.tampered"),
    normal("csrf.rejected"),
    high("db.mode", None),
    // Logged as `high` for each request that it refuses.
    LogEvent {
        name: "db.restored",
        severities: &["critical", "high"],
        doctor: Some("restore"),
    },
    normal("db.unfamiliar"),
    normal("feed.ahead"),
    normal("feed.denied"),
    normal("feed.unmarked"),
    normal("feed.unready"),
    normal("gc.done"),
    normal("http.404"),
    normal("http.bad_forwarded"),
    normal("http.bad_host"),
    normal("http.conn_limit"),
    normal("http.cookie"),
    normal("http.denied"),
    normal("http.malformed"),
    normal("http.method"),
    normal("http.plain"),
    normal("http.proxy_undeclared"),
    normal("http.request"),
    high("http.timeout", None),
    normal("http.too_large"),
    high("introspection.degraded", Some("database")),
    normal("introspection.denied"),
    critical("key.corrupt", Some("keys")),
    critical("key.kek_mismatch", Some("KEK")),
    normal("key.rejected"),
    critical("key.revoked", None),
    normal("key.rotated"),
    normal("key.state"),
    high("key.unusable", Some("clock")),
    normal("limits.raised"),
    high("log.dropped", None),
    normal("login.busy"),
    normal("login.failed"),
    normal("login.reauth"),
    high("login.spray", None),
    normal("login.throttled"),
    high("logout.backchannel_dead", None),
    normal("logout.backchannel_failed"),
    normal("logout.backchannel_sent"),
    normal("logout.bad_redirect"),
    normal("logout.confirm"),
    normal("logout.rejected"),
    high("node.degraded", Some("clock")),
    normal("node.recovered"),
    normal("node.skew"),
    normal("node.unready"),
    normal("page.broken"),
    normal("ratelimit.counted"),
    normal("ratelimit.hit"),
    normal("redirect_uri.mismatch"),
    normal("registration.rejected"),
    normal("revocation.denied"),
    normal("revocation.done"),
    normal("server.draining"),
    normal("server.manager_deaf"),
    high("server.panicked", None),
    normal("server.started"),
    normal("server.stopped"),
    normal("server.stopping"),
    normal("session.dup_cookie"),
    normal("session.ended"),
    normal("session.expired"),
    normal("session.invalid"),
    normal("session.rotated"),
    normal("storage.awaited"),
    high("storage.error", Some("database")),
    normal("telemetry.unavailable"),
    high("tls.expiring", Some("certificate")),
    high("tls.not_valid", Some("certificate")),
    high("tls.reload_failed", Some("certificate")),
    normal("tls.reloaded"),
    normal("token.expired"),
    normal("token.refresh_grace"),
    high("token.refresh_reuse", None),
    normal("token.rejected"),
    high("token.storage_error", Some("database")),
];

/// Returns each event of high or critical severity with its severity.
pub fn alerts() -> impl Iterator<Item = (&'static str, &'static str)> {
    LOG_EVENTS.iter().flat_map(|event| {
        let severities = event.severities.iter();
        severities.map(|severity| (event.name, *severity))
    })
}

/// The events of the verifier and the guard, which are logged by other processes.
pub const EMBEDDED_EVENTS: &[&str] = &[
    "feed.fresh",
    "feed.full",
    "feed.gap",
    "feed.rejected",
    "feed.rollback",
    "feed.skew",
    "feed.stale",
    "guard.conn_limit",
    "guard.ignored",
    "guard.listening",
    "guard.refused",
    "guard.started",
    "guard.stopping",
    "guard.waiting",
    "jwks.refetch",
];
