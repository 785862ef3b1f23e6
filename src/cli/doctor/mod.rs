//! `doctor`: finds common mistakes. Prints one line per check, with advice.

mod database;
mod files;
mod keys;
mod outside;

use serde_json::{Value, json};

use super::{Exit, Output, block_on};
use crate::accounts::password::Password;
use crate::cli::command::{clock, entropy};
use crate::config::{self, Argon2, Config, Overrides};
use crate::keys::provider;
use crate::secret::Secret;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Nothing needs to change.
    Info,
    /// It works, but not for long or not for all users.
    Warn,
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of a check, with advice.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
}

fn ok(check: &'static str, what: impl Into<String>) -> Finding {
    finding(check, Verdict::Ok, what)
}

fn info(check: &'static str, what: impl Into<String>) -> Finding {
    finding(check, Verdict::Info, what)
}

fn warn(check: &'static str, what: impl Into<String>) -> Finding {
    finding(check, Verdict::Warn, what)
}

fn fail(check: &'static str, what: impl Into<String>) -> Finding {
    finding(check, Verdict::Fail, what)
}

fn finding(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Finding {
    // One line, even if the message of a library has several.
    let what: String = what.into();
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    Finding {
        check,
        verdict,
        what,
    }
}

pub fn run(overrides: &Overrides, output: Output) -> anyhow::Result<()> {
    let read = config::environment().and_then(|all| {
        let config = config::load(overrides, all.clone())?;
        let ignored = config::ignored_variables(&all);
        Ok((config, ignored, config::exposed_file(overrides, all)))
    });
    let findings = match read {
        Ok((config, ignored, exposed)) => {
            crate::log::start(&config.log, clock());
            provider::install();
            let mut findings: Vec<Finding> = ignored.iter().map(misspelled).collect();
            findings.extend(examine(&config)?);
            findings.extend(exposed.map(|path| files::exposed(&path)));
            findings
        }
        Err(error) => vec![fail("configuration", error.to_string())],
    };
    match output {
        Output::Table => findings.iter().for_each(|finding| {
            let word = finding.verdict.word();
            println!("{word:<4}  {:<17}  {}", finding.check, finding.what);
        }),
        Output::Json => {
            let values: Vec<Value> = findings
                .iter()
                .map(|f| json!({ "check": f.check, "verdict": f.verdict.word(), "what": f.what }))
                .collect();
            println!("{:#}", Value::from(values));
        }
    }
    match findings
        .iter()
        .filter(|f| f.verdict == Verdict::Fail)
        .count()
    {
        0 => Ok(()),
        failed => Err(Exit {
            code: 1,
            message: format!("{failed} of {} checks failed", findings.len()),
        }
        .into()),
    }
}

fn misspelled(variable: &config::IgnoredVariable) -> Finding {
    let what = format!(
        "the variable {} is not read; did you mean {}?",
        variable.name, variable.expected
    );
    warn("configuration", what)
}

fn examine(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let mut findings = vec![configuration(config)];
    findings.extend(files::check(config));
    findings.push(hashing(config));
    block_on(async {
        let (store, database) = database::check(config).await;
        findings.extend(database);
        findings.extend(keys::check(config, store.as_ref()).await);
        findings.extend(outside::check(config).await);
        Ok(())
    })?;
    Ok(findings)
}

fn configuration(config: &Config) -> Finding {
    let (http, listen) = (&config.http, &config.listen);
    let https = config.issuer().is_ok_and(|issuer| issuer.is_https());
    let loose = config.limits.loosened();
    if https && listen.tls.files().is_none() && http.trusted_proxies.is_empty() {
        return warn(
            "configuration",
            "the issuer is https and `listen.public` is not, so a TLS proxy is required; name it in `http.trusted_proxies`, or all users share one address and its limits",
        );
    }
    if !loose.is_empty() {
        let what = format!("looser than the default: {}", loose.join(", "));
        return warn("configuration", what);
    }
    ok("configuration", "readable, no unknown keys")
}

/// Measures the time of one password hash.
fn hashing(config: &Config) -> Finding {
    let (entropy, start) = (entropy(), clock().uptime());
    let text = Secret::readable(&entropy);
    let hashed = Password::parse(text.expose())
        .map_err(|_| "invalid password".to_owned())
        .and_then(|password| password.hash(&config.login.argon2, &entropy));
    let took = clock().uptime().since(start).as_millis();
    let threads = config.login.hash_threads();
    match hashed {
        Err(why) => fail("password hash", why),
        Ok(_) if took > 1_000 => warn(
            "password hash",
            format!(
                "one takes {took} ms on this machine, {threads} at once: {}",
                slow_hash_advice(config.login.argon2)
            ),
        ),
        Ok(_) => ok(
            "password hash",
            format!("one takes {took} ms, {threads} at once"),
        ),
    }
}

/// Returns the advice for slow password hashes. The defaults are the minimum, so there is nothing to lower below them.
fn slow_hash_advice(configured: Argon2) -> String {
    let least = Argon2::default();
    match configured == least {
        true => "the machine is slow or busy; measure again when it is idle".to_owned(),
        false => format!(
            "lower `login.argon2` towards its minimum (memory_kib = {}, passes = {}, lanes = {}), or use a faster core",
            least.memory_kib, least.passes, least.lanes
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_settings_at_their_minimum_are_not_to_be_lowered() {
        let least = Argon2::default();
        assert!(!slow_hash_advice(least).contains("lower"));
        let more = Argon2 { passes: 3, ..least };
        assert!(slow_hash_advice(more).contains("lower `login.argon2`"));
    }
}
