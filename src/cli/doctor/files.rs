//! Checks of files on this host: certificates and secrets.

use std::path::Path;

use super::{Finding, fail, ok, warn};
use crate::cli::command::clock;
use crate::config::limits::CERTIFICATE_ALERT;
use crate::config::{Config, read_secret_file};
use crate::http::{Validity, inspect_certificate};

pub fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let host = config.issuer().map(|issuer| issuer.host().to_owned());
    let listeners = [
        ("certificate", &config.listen.tls, host.ok()),
        ("management TLS", &config.listen.management_tls, None),
    ];
    for (check, tls, host) in listeners {
        if let Some(files) = tls.files() {
            findings.push(certificate(check, files, host.as_deref()));
        }
    }
    if let Some(path) = &config.bootstrap.admin_password_file {
        findings.push(match read_secret_file(path) {
            Ok(_) => warn(
                "bootstrap",
                "`bootstrap.admin_password_file` is for the first start: remove it once there is a permanent administrator",
            ),
            Err(why) => fail("bootstrap", format!("`bootstrap.admin_password_file`: {why}")),
        });
    }
    findings
}

/// Reports a configuration file with a password that all users can read.
pub fn exposed(path: &Path) -> Finding {
    let path = path.display();
    let what = format!(
        "the password in `database.url` of {path} can be read by all users of this machine: run `chmod 640 {path}`, or move the URL into a file of its own (`database.url_file`)"
    );
    warn("secrets", what)
}

fn certificate(
    check: &'static str,
    files: (std::path::PathBuf, std::path::PathBuf),
    host: Option<&str>,
) -> Finding {
    let chain = files.0.display().to_string();
    match inspect_certificate(&files, host) {
        Err(error) => fail(check, error.to_string()),
        Ok((_, false)) => fail(
            check,
            format!(
                "{chain} is not valid for {}, the host of `issuer`",
                host.unwrap_or_default()
            ),
        ),
        Ok((found, true)) => validity(check, &chain, found),
    }
}

/// Checks when a certificate is valid.
pub fn validity(check: &'static str, which: &str, validity: Validity) -> Finding {
    let Validity { from, until } = validity;
    let now = clock().now();
    if now < from {
        let what = format!(
            "{which} is not valid before {from}: check the clock of this host, or use the certificate that is valid now"
        );
        return fail(check, what);
    }
    if now >= until {
        return fail(check, format!("{which} expired at {until}: renew it"));
    }
    if until.since(now) < CERTIFICATE_ALERT {
        return warn(check, format!("{which} expires at {until}: renew it"));
    }
    ok(check, format!("{which} is valid until {until}"))
}
