//! What a request is called and what is known of it, its one line in the log, and its place in the
//! figures.

use std::borrow::Cow;
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage, HttpRequest};

use crate::app::App;
use crate::http::server::client_address::ClientAddress;
use crate::id::{self, ClientId};
use crate::log::ACCESS;
use crate::metrics::{HTTP_DURATION, HTTP_REQUESTS, Label};
use crate::telemetry::{self, Span};
use crate::time::Uptime;

/// Longest request id that a proxy may give.
const LONGEST_ID: usize = 64;

/// A request in log lines, in its answer and on its error page. Made here, or by a proxy that we trust.
#[derive(Clone, Debug)]
pub struct RequestId {
    id: String,
    /// W3C Trace Context §3.2.2.3: `trace-id`.
    trace: String,
    /// Our own `parent-id`, for whatever is called from here.
    span: String,
    /// The proxy's.
    parent: Option<String>,
    flags: String,
}

/// Who a request turned out to come from.
#[derive(Clone, Debug, Default)]
struct Party {
    client_id: Option<String>,
    user_ref: Option<String>,
}

impl RequestId {
    /// Takes what a proxy says if it is `trusted` and well-formed, and makes the rest.
    pub(in crate::http) fn begin(headers: &HeaderMap, trusted: bool, app: &App) -> Self {
        let own = id::uuid(&app.entropy, app.clock.now());
        let hex: String = own.chars().filter(|c| *c != '-').collect();
        let said = |name: &str| {
            let mut values = headers.get_all(name).filter(|_| trusted);
            let (value, None) = (values.next()?, values.next()) else {
                return None;
            };
            value.to_str().ok()
        };
        let given = said("traceparent").and_then(parse_trace);
        let (trace, parent, flags) = match given {
            Some((trace, parent, flags)) => (Some(trace), Some(parent), flags),
            None => (None, None, if telemetry::is_on() { "01" } else { "00" }),
        };
        Self {
            id: said("x-request-id")
                .filter(|id| is_well_formed(id))
                .map_or(own, str::to_owned),
            // The right half of a UUIDv7 is random.
            span: hex[16..].to_owned(),
            trace: trace.map_or(hex, str::to_owned),
            parent: parent.map(str::to_owned),
            flags: flags.to_owned(),
        }
    }

    /// The id of a request, as its answer carries it.
    pub fn of(request: &HttpRequest) -> String {
        Self::find(request).map(|id| id.id).unwrap_or_default()
    }

    fn find(request: &HttpRequest) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// W3C Trace Context §3.2.2.5: the lowest bit.
    fn is_sampled(&self) -> bool {
        u8::from_str_radix(&self.flags, 16).is_ok_and(|flags| flags & 1 == 1)
    }

    /// Tells both on the answer.
    pub(in crate::http) fn describe(&self, headers: &mut HeaderMap) {
        let traceparent = format!("00-{}-{}-{}", self.trace, self.span, self.flags);
        for (name, value) in [
            ("x-request-id", self.id.as_str()),
            ("traceparent", &traceparent),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

fn is_well_formed(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// W3C Trace Context §3.2: `00-<trace-id>-<parent-id>-<flags>`; all zeros are no id.
fn parse_trace(text: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split('-').collect();
    let ["00", trace, parent, flags] = parts[..] else {
        return None;
    };
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let real = |text: &str| text.bytes().any(|b| b != b'0');
    let good = hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && real(trace) && real(parent);
    good.then_some((trace, parent, flags))
}

/// From now on the request's lines name the client that it is from or about. Only a registered one.
pub(in crate::http) fn name_client(request: &HttpRequest, client: &ClientId) {
    party(request, |party| party.client_id = Some(client.to_string()));
}

/// The same for the person, by their hashed name.
pub(in crate::http) fn name_person(request: &HttpRequest, user_ref: &str) {
    party(request, |party| party.user_ref = Some(user_ref.to_owned()));
}

fn party(request: &HttpRequest, change: impl FnOnce(&mut Party)) {
    let mut extensions = request.extensions_mut();
    let mut party = extensions.remove::<Party>().unwrap_or_default();
    change(&mut party);
    extensions.insert(party);
}

/// What every line about a request says of it.
pub(in crate::http) struct About {
    pub(in crate::http) request_id: String,
    pub(in crate::http) trace_id: String,
    pub(in crate::http) client_id: Option<String>,
    pub(in crate::http) user_ref: Option<String>,
    pub(in crate::http) ip: String,
}

impl About {
    pub(in crate::http) fn of(request: &HttpRequest) -> Self {
        let (request_id, trace_id) = RequestId::find(request)
            .map(|id| (id.id, id.trace))
            .unwrap_or_default();
        let party = request.extensions().get::<Party>().cloned();
        let Party {
            client_id,
            user_ref,
        } = party.unwrap_or_default();
        Self {
            request_id,
            trace_id,
            client_id,
            user_ref,
            ip: ClientAddress::of(request).to_string(),
        }
    }
}

/// The pattern of a request's route; what has none shares one name.
pub(in crate::http) fn route(request: &HttpRequest) -> Label {
    request
        .match_pattern()
        .map_or(Cow::Borrowed("none"), Cow::Owned)
}

/// The one line of a request, written when its answer begins, without its query.
pub(in crate::http) fn write_access_log(
    request: &HttpRequest,
    status: StatusCode,
    begun: Uptime,
    app: &App,
) {
    let took = app.clock.uptime().since(begun);
    let (method, route) = (method(request.method()), route(request));
    let about = About::of(request);
    tracing::info!(
        target: ACCESS,
        event = "http.request",
        request_id = about.request_id,
        trace_id = about.trace_id,
        client_id = about.client_id,
        user_ref = about.user_ref,
        ip = about.ip,
        method,
        route = &*route,
        path = request.path(),
        status = status.as_u16(),
        took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    );
    trace(request, method, &route, status, took, app);
    HTTP_DURATION.observe(route.clone(), took);
    HTTP_REQUESTS.count([route, method.into(), status.as_str().to_owned().into()]);
}

/// Its span, if somebody collects them and the proxy wants this one.
fn trace(
    request: &HttpRequest,
    method: &'static str,
    route: &str,
    status: StatusCode,
    took: Duration,
    app: &App,
) {
    let Some(id) = RequestId::find(request).filter(|id| telemetry::is_on() && id.is_sampled())
    else {
        return;
    };
    telemetry::record(Span {
        trace_id: id.trace,
        span_id: id.span,
        parent_id: id.parent,
        begun: app.clock.now() - took,
        took,
        method,
        route: route.to_owned(),
        status: status.as_u16(),
        request_id: id.id,
        client_id: About::of(request).client_id,
    });
}

/// A method that exists; whatever else was sent is one.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proxy_names_is_taken_only_in_the_right_form() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(parse_trace(&good), Some((trace, "00f067aa0ba902b7", "01")));
        for bad in [
            "",
            "00",
            &good[1..],
            &good.to_uppercase(),
            &format!("{good}-x"),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &good.replace(trace, "00000000000000000000000000000000"),
            &good.replacen("00-", "ff-", 1),
        ] {
            assert_eq!(parse_trace(bad), None, "{bad}");
        }
        assert!(is_well_formed("01a3185c-5000-7000:x_y.Z"));
        for bad in ["", "a b", "a\"b", "../x", &"x".repeat(65)] {
            assert!(!is_well_formed(bad), "{bad}");
        }
    }
}
