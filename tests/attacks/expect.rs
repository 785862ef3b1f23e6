//! The catalogue's short names for responses (PAGE400, REDIR, …), and the checks that apply to every case.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fixtures::journal::Exchange;
use crate::fixtures::{Answer, ISSUER, journal, log};
use crate::{login, token_code};

/// The redirect URI of `web`.
pub const WEB_CALLBACK: &str = "https://app.example/cb";

/// Checks PAGE400: an error page with status 400, without `Location`, session cookie or code.
pub fn page400(answer: &Answer) -> Result<(), String> {
    page(answer, 400)
}

/// Removes the exchanges with an http issuer from the journal: it does not send `Strict-Transport-Security`, which every
/// other exchange must have.
pub fn strike_out_http_issuer() {
    journal::strike_out(|exchange| {
        let hsts = exchange.answer.header("strict-transport-security");
        hsts.is_none()
    });
}

/// Checks an error page of this server, without `Location` or session cookie.
pub fn page(answer: &Answer, status: u16) -> Result<(), String> {
    if answer.status != status {
        return Err(format!("got {}, want page {status}", summary(answer)));
    }
    if !answer
        .header("content-type")
        .unwrap_or_default()
        .starts_with("text/html")
        || !answer.body.contains("<title>Error")
    {
        return Err(format!(
            "want an error page of this server, got {}",
            summary(answer)
        ));
    }
    if let Some(to) = answer.location() {
        return Err(format!("an error page with Location {to}"));
    }
    if sets_session(answer) {
        return Err("an error page that sets a session cookie".to_owned());
    }
    Ok(())
}

/// Returns whether the response sets the session cookie.
pub fn sets_session(answer: &Answer) -> bool {
    answer
        .headers
        .get_all("set-cookie")
        .iter()
        .any(|cookie| cookie.as_bytes().starts_with(b"__Host-sid="))
}

/// Checks REDIR: 303 to the redirect URI of `web` with this error.
pub fn redirected(answer: &Answer, error: &str, state: Option<&str>) -> Result<(), String> {
    redirected_to(answer, WEB_CALLBACK, error, state)
}

/// Checks REDIR to another URI: 303 to exactly `uri` with `error`, `iss` and this `state`, without a code.
pub fn redirected_to(
    answer: &Answer,
    uri: &str,
    error: &str,
    state: Option<&str>,
) -> Result<(), String> {
    let joint = if uri.contains('?') { '&' } else { '?' };
    if answer.status != 303
        || !answer
            .location()
            .is_some_and(|to| to.starts_with(&format!("{uri}{joint}")))
    {
        return Err(format!(
            "got {}, want 303 to {uri} with {error}",
            summary(answer)
        ));
    }
    let wanted = [
        ("error", Some(error)),
        ("iss", Some(ISSUER)),
        ("state", state),
        ("code", None),
        ("error_uri", None),
    ];
    for (name, want) in wanted {
        let got = answer.callback(name);
        if got.as_deref() != want {
            return Err(format!(
                "{name}: got {got:?}, want {want:?} in {}",
                summary(answer)
            ));
        }
    }
    if sets_session(answer) {
        return Err("a refusal that sets a session cookie".to_owned());
    }
    Ok(())
}

/// Checks JSON400 and JSON401: this status, `application/json`, this `error`, `no-store`.
pub fn json_error(answer: &Answer, status: u16, code: &str) -> Result<(), String> {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let json = answer
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("application/json"));
    if answer.status != status || !json || body["error"] != code {
        return Err(format!("got {}, want {status} {code}", summary(answer)));
    }
    if answer.header("cache-control") != Some("no-store") {
        return Err(format!(
            "cache-control: got {:?}, want no-store",
            answer.header("cache-control")
        ));
    }
    Ok(())
}

/// Checks that this request logged the event. An empty `reason` matches any reason.
pub fn logged(answer: &Answer, event: &str, reason: &str) -> Result<(), String> {
    let events = answer.logged();
    if events
        .iter()
        .any(|(name, why)| name == event && (reason.is_empty() || why == reason))
    {
        return Ok(());
    }
    Err(format!("logged {events:?}, want {event}{{{reason}}}"))
}

/// Checks a success: 303 to exactly `uri` with a code, `iss` and this `state`.
pub fn redirected_with_code(answer: &Answer, uri: &str, state: Option<&str>) -> Result<(), String> {
    let joint = if uri.contains('?') { '&' } else { '?' };
    let there = answer
        .location()
        .is_some_and(|to| to.starts_with(&format!("{uri}{joint}code=")));
    let state_is = answer.callback("state").as_deref() == state;
    if answer.status == 303
        && there
        && state_is
        && answer.callback("iss").as_deref() == Some(ISSUER)
    {
        return Ok(());
    }
    Err(format!(
        "got {}, want 303 to {uri} with a code",
        summary(answer)
    ))
}

/// Returns the unescaped fields of the self-submitting page of form_post mode.
pub fn posted_to(answer: &Answer, uri: &str) -> Result<BTreeMap<String, String>, String> {
    if answer.status != 200
        || !answer
            .body
            .contains(&format!("<form method=\"post\" action=\"{uri}\">"))
    {
        return Err(format!(
            "got {}, want a form that posts to {uri}",
            summary(answer)
        ));
    }
    let attribute = |input: &str, name: &str| {
        let value = input
            .split_once(&format!("{name}=\""))?
            .1
            .split_once('"')?
            .0;
        Some(unescape(value))
    };
    let inputs = answer.body.split("<input").skip(1);
    Ok(inputs
        .filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value")?)))
        .collect())
}

/// Decodes the HTML entities of an attribute.
pub fn unescape(text: &str) -> String {
    let named = text
        .replace("&quot;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    named
        .replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&#60;", "<")
        .replace("&#62;", ">")
        .replace("&#38;", "&")
        .replace("&amp;", "&")
}

/// Checks that the response is the login page.
pub fn login_page(answer: &Answer) -> Result<(), String> {
    shows(answer, "login-submit")
}

/// Checks that the response is the consent page.
pub fn consent_page(answer: &Answer) -> Result<(), String> {
    shows(answer, "consent-allow")
}

fn shows(answer: &Answer, id: &str) -> Result<(), String> {
    if answer.status == 200 && answer.body.contains(&format!("id=\"{id}\"")) {
        Ok(())
    } else {
        Err(format!("got {}, want the page with {id}", summary(answer)))
    }
}

/// Describes a response in one line.
pub fn summary(answer: &Answer) -> String {
    let title = answer
        .body
        .split_once("<title>")
        .and_then(|(_, rest)| rest.split_once("</title>"));
    let body = title.map_or(answer.body.as_str(), |(title, _)| title);
    let body: String = body.chars().take(120).collect();
    let events: Vec<String> = answer
        .logged()
        .iter()
        .map(|(event, reason)| format!("{event}{{{reason}}}"))
        .collect();
    format!(
        "{} {} `{body}` {}",
        answer.status,
        answer.location().unwrap_or_default(),
        events.join(" ")
    )
}

/// Returns the violations of the checks that apply to every case, over all exchanges of a row and the log
/// since `mark`.
pub fn violations(exchanges: &[Exchange], mark: usize) -> Vec<String> {
    let each = exchanges.iter().filter_map(|exchange| {
        let broken = wrong_status_time_or_header(exchange)
            .or_else(|| unlogged_rejection(exchange))
            .or_else(|| wrong_access_log(exchange))
            .or_else(|| reflected_input(exchange))
            .or_else(|| wrong_cookie_or_token_error(exchange))?;
        let target: String = exchange.target.chars().take(200).collect();
        Some(format!("{} {target}: {broken}", exchange.method))
    });
    each.chain(logged_secret(exchanges, mark)).collect()
}

/// Returns an error if a secret of the exchanges is in the log.
fn logged_secret(exchanges: &[Exchange], mark: usize) -> Option<String> {
    let mut secrets = BTreeSet::new();
    for Exchange { answer, body, .. } in exchanges {
        secrets.extend(answer.callback("code"));
        let cookies = answer
            .headers
            .get_all("set-cookie")
            .iter()
            .filter_map(|cookie| cookie.to_str().ok());
        secrets
            .extend(cookies.filter_map(|cookie| {
                Some(cookie.split(';').next()?.split_once('=')?.1.to_owned())
            }));
        if let Ok(serde_json::Value::Object(members)) = serde_json::from_str(&answer.body) {
            let tokens = ["access_token", "refresh_token", "id_token"]
                .into_iter()
                .filter_map(|name| members.get(name)?.as_str());
            secrets.extend(tokens.map(str::to_owned));
        }
        let fields = form_urlencoded::parse(body.as_deref().unwrap_or_default().as_bytes());
        let private = [
            "password",
            "code",
            "code_verifier",
            "client_secret",
            "refresh_token",
            "access_token",
            "token",
            "csrf",
        ];
        secrets.extend(
            fields
                .filter(|(name, _)| private.contains(&&**name))
                .map(|(_, value)| value.into_owned()),
        );
    }
    // Shorter values are chosen by the tests and may be words.
    secrets.retain(|secret| secret.len() >= 16);
    let logged: Vec<String> = log::since(mark)
        .iter()
        .flat_map(|event| event.values().cloned())
        .collect();
    let logged = logged.join("\n");
    secrets
        .iter()
        .find(|secret| logged.contains(secret.as_str()))
        .map(|secret| format!("the log holds the secret {secret}"))
}

/// Returns an error if status, duration or headers are wrong.
fn wrong_status_time_or_header(exchange: &Exchange) -> Option<String> {
    let answer = &exchange.answer;
    // A debug build beside other servers on a busy machine gets more than 1 s.
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
    if answer.status >= 500 {
        return Some(format!("status {}", answer.status));
    }
    if exchange.took > limit {
        return Some(format!("took {} ms", exchange.took.as_millis()));
    }
    for (name, want) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        (
            "strict-transport-security",
            "max-age=63072000; includeSubDomains",
        ),
    ] {
        if answer.header(name) != Some(want) {
            return Some(format!("{name}: {:?}", answer.header(name)));
        }
    }
    let html = answer
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("text/html"));
    if html
        && !answer
            .header("content-security-policy")
            .is_some_and(|csp| csp.contains("frame-ancestors 'none'"))
    {
        return Some("a page that may be framed".to_owned());
    }
    if (html || answer.status == 303) && answer.header("cache-control") != Some("no-store") {
        return Some("may be stored".to_owned());
    }
    None
}

/// Checks A128 and A202 over the whole suite: each cookie, and each error of the token endpoint.
fn wrong_cookie_or_token_error(exchange: &Exchange) -> Option<String> {
    let answer = &exchange.answer;
    let cookies = answer.headers.get_all("set-cookie").iter();
    let odd = cookies
        .filter_map(|cookie| {
            login::forms::cookie_is_ours(cookie.to_str().unwrap_or_default()).err()
        })
        .next();
    let token_error = exchange.target.starts_with("/oauth2/token")
        && answer.status >= 400
        && answer.body.starts_with('{');
    let text = token_error.then(|| token_code::answers::fixed_text(answer).err());
    odd.or(text.flatten())
}

/// Returns an error if a rejection is not logged as a warning with reason and address.
fn unlogged_rejection(exchange: &Exchange) -> Option<String> {
    let answer = &exchange.answer;
    let refusal = answer.status >= 400 || answer.callback("error").is_some();
    let told = |event: &log::Event| {
        event["level"] != "INFO"
            && event.contains_key("event")
            && event.contains_key("reason")
            && event.contains_key("ip")
    };
    let request_id = answer.header("x-request-id").unwrap_or_default();
    (refusal && !log::of(request_id).iter().any(told))
        .then(|| format!("refused with {} but not logged", answer.status))
}

/// Returns an error unless the response has one line in the access log, with its status and without the
/// query. The lines of other processes are not captured.
fn wrong_access_log(exchange: &Exchange) -> Option<String> {
    let answer = &exchange.answer;
    let lines = log::accesses(answer.header("x-request-id")?);
    let good = match lines.as_slice() {
        [] => true,
        [one] => {
            one["status"] == answer.status.to_string()
                && !one.values().any(|text| text.contains('?'))
        }
        _ => false,
    };
    (!good).then(|| format!("access lines: {lines:?}"))
}

/// Removes the targets of links from a page.
fn without_links(body: &str) -> String {
    let mut parts = body.split("href=\"");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once('"').map_or("", |(_, rest)| rest)
    })
}

/// Returns an error if an error text contains a part of the request.
fn reflected_input(exchange: &Exchange) -> Option<String> {
    let answer = &exchange.answer;
    let described = answer.callback("error_description").or_else(|| {
        let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        body["error_description"].as_str().map(str::to_owned)
    });
    // A form that is shown again contains what the user typed, and a link leads back to the client.
    let is_error = answer.status >= 400 && answer.status != 421 && !answer.body.contains("<form");
    let page = is_error.then(|| without_links(&answer.body));
    let texts: Vec<String> = described.into_iter().chain(page).collect();
    let query = exchange
        .target
        .split_once('?')
        .map_or("", |(_, query)| query);
    let values = [Some(query), exchange.body.as_deref()]
        .into_iter()
        .flatten()
        .flat_map(|text| form_urlencoded::parse(text.as_bytes()));
    // Plain lower-case words may also occur in our own texts.
    let telling = |value: &str| {
        value.len() >= 5
            && !value
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b' ')
    };
    for (_, value) in values {
        if telling(&value) && texts.iter().any(|text| text.contains(&*value)) {
            return Some(format!("the answer holds `{value}` of the request"));
        }
    }
    None
}
