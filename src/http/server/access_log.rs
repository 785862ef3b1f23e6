//! The id of a request, the client and the user that it belongs to, its access log line, its trace span and its
//! metrics.

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

/// Longest request id that is accepted from a proxy.
const LONGEST_ID: usize = 64;

/// The id of a request in log lines, in the response and on an error page. Created here, or by a trusted proxy.
#[derive(Clone, Debug)]
pub struct RequestId {
    id: String,
    /// W3C Trace Context §3.2.2.3: `trace-id`.
    trace: String,
    /// The `parent-id` of this server, for requests that it sends.
    span: String,
    /// The `parent-id` of the proxy.
    parent: Option<String>,
    flags: String,
}

/// The client and the user that a request belongs to, as far as known.
#[derive(Clone, Debug, Default)]
struct Subject {
    client_id: Option<String>,
    user_ref: Option<String>,
}

impl RequestId {
    /// Takes the well-formed values of a `trusted` proxy and creates the others.
    pub(in crate::http) fn begin(headers: &HeaderMap, trusted: bool, app: &App) -> Self {
        let own = id::uuid(&app.entropy, app.clock.now());
        let hex: String = own.chars().filter(|c| *c != '-').collect();
        let received = |name: &str| {
            let mut values = headers.get_all(name).filter(|_| trusted);
            let (value, None) = (values.next()?, values.next()) else {
                return None;
            };
            value.to_str().ok()
        };
        let parsed = received("traceparent").and_then(parse_trace);
        let (trace, parent, flags) = match parsed {
            Some((trace, parent, flags)) => (Some(trace), Some(parent), flags),
            None => (None, None, if telemetry::is_on() { "01" } else { "00" }),
        };
        Self {
            id: received("x-request-id")
                .filter(|id| is_well_formed(id))
                .map_or(own, str::to_owned),
            // The right half of a UUIDv7 is random.
            span: hex[16..].to_owned(),
            trace: trace.map_or(hex, str::to_owned),
            parent: parent.map(str::to_owned),
            flags: flags.to_owned(),
        }
    }

    /// Returns the id of a request, as in the response.
    pub fn of(request: &HttpRequest) -> String {
        Self::find(request).map(|id| id.id).unwrap_or_default()
    }

    fn find(request: &HttpRequest) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Returns whether the lowest bit of the flags is set (W3C Trace Context §3.2.2.5).
    fn is_sampled(&self) -> bool {
        u8::from_str_radix(&self.flags, 16).is_ok_and(|flags| flags & 1 == 1)
    }

    /// Sets the headers of the response.
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

/// Parses `00-<trace-id>-<parent-id>-<flags>` (W3C Trace Context §3.2). An id of zeros is invalid.
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
    let is_nonzero = |text: &str| text.bytes().any(|b| b != b'0');
    let is_valid = hex(trace, 32)
        && hex(parent, 16)
        && hex(flags, 2)
        && is_nonzero(trace)
        && is_nonzero(parent);
    is_valid.then_some((trace, parent, flags))
}

/// Names the client in the log lines of a request from now on. The client must be registered.
pub(in crate::http) fn name_client(request: &HttpRequest, client: &ClientId) {
    set_subject(request, |subject| {
        subject.client_id = Some(client.to_string())
    });
}

/// Names the user, by the keyed hash of the user name, in the log lines of a request from now on.
pub(in crate::http) fn name_user(request: &HttpRequest, user_ref: &str) {
    set_subject(request, |subject| {
        subject.user_ref = Some(user_ref.to_owned())
    });
}

fn set_subject(request: &HttpRequest, change: impl FnOnce(&mut Subject)) {
    let mut extensions = request.extensions_mut();
    let mut subject = extensions.remove::<Subject>().unwrap_or_default();
    change(&mut subject);
    extensions.insert(subject);
}

/// The fields of every log line about a request.
pub(in crate::http) struct About {
    pub(in crate::http) request_id: String,
    /// The trace of a trusted proxy or a collector. Otherwise it is the request id in another form.
    pub(in crate::http) trace_id: Option<String>,
    pub(in crate::http) client_id: Option<String>,
    pub(in crate::http) user_ref: Option<String>,
    pub(in crate::http) ip: String,
}

impl About {
    pub(in crate::http) fn of(request: &HttpRequest) -> Self {
        let (request_id, trace_id) = RequestId::find(request)
            .map(|id| {
                let is_traced = id.parent.is_some() || telemetry::is_on();
                (id.id, is_traced.then_some(id.trace))
            })
            .unwrap_or_default();
        let subject = request.extensions().get::<Subject>().cloned();
        let Subject {
            client_id,
            user_ref,
        } = subject.unwrap_or_default();
        Self {
            request_id,
            trace_id,
            client_id,
            user_ref,
            ip: ClientAddress::of(request).to_string(),
        }
    }
}

/// Returns the pattern of a request's route; `none` for requests without a route.
pub(in crate::http) fn route(request: &HttpRequest) -> Label {
    request
        .match_pattern()
        .map_or(Cow::Borrowed("none"), Cow::Owned)
}

/// Writes the access log line of a request when its response starts. The query is omitted. Records the metrics and
/// the trace span as well.
pub(in crate::http) fn write_access_log(
    request: &HttpRequest,
    status: StatusCode,
    started: Uptime,
    app: &App,
) {
    let duration = app.clock.uptime().since(started);
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
        took_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
    );
    trace(request, method, &route, status, duration, app);
    HTTP_DURATION.observe(route.clone(), duration);
    HTTP_REQUESTS.count([route, method.into(), status.as_str().to_owned().into()]);
}

/// Records the span of a request if traces are exported and the request is sampled.
fn trace(
    request: &HttpRequest,
    method: &'static str,
    route: &str,
    status: StatusCode,
    duration: Duration,
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
        begun: app.clock.now() - duration,
        took: duration,
        method,
        route: route.to_owned(),
        status: status.as_u16(),
        request_id: id.id,
        client_id: About::of(request).client_id,
    });
}

/// Returns the method as a label. All unknown methods share one.
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
    fn only_well_formed_ids_of_a_proxy_are_accepted() {
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
