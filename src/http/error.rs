//! The one map from refusals to answers: JSON, redirect or page. Each is logged once, here, with its
//! private reason; the answer carries the public code and an id to quote.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, RETRY_AFTER};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::app::App;
use crate::http::assets::Assets;
use crate::http::response::{PagePolicy, page};
use crate::http::server::access_log::{self, About, RequestId};
use crate::http::server::rate_limit::whole_seconds;
use crate::metrics::REFUSED;
use crate::oauth::{Cause, Code, Description, Detail, Error, Severity};

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorTemplate<'a> {
    frame: &'a crate::http::response::Frame,
    title: &'a str,
    reason: &'a str,
    advice: Option<&'a str>,
    link: Option<Link>,
    error_id: &'a str,
    detail: Option<String>,
}

/// The way on from an error page.
#[derive(Clone, Debug)]
pub struct Link {
    /// The text of the button.
    pub label: String,
    /// A path of this server, or an address of the client.
    pub href: String,
}

/// A refusal that people see, with a fixed text.
#[derive(Clone, Copy, Debug)]
pub struct ErrorPage {
    status: u16,
    title: &'static str,
    reason: &'static str,
    advice: Option<&'static str>,
    detail: Detail,
}

macro_rules! notices {
    ($($name:ident $status:literal $title:literal $reason:literal $advice:expr, $event:literal $why:literal;)*) => {
        impl ErrorPage {$(
            #[doc = $title]
            pub const $name: ErrorPage = ErrorPage {
                status: $status, title: $title, reason: $reason, advice: $advice,
                detail: Detail::new($event, $why),
            };
        )*}
    };
}

notices! {
    NOT_FOUND 404 "There is no such page" "Nothing is served at this address." None, "http.404" "path";
    FORGED 403 "This form was not accepted" "The form did not come from a page of ours, or the page is from an earlier visit." Some("Go back to the application and start again."), "csrf.rejected" "token";
    CROSS_SITE 403 "This form was not accepted" "The form was sent by another site." Some("Go back to the application and start again."), "csrf.rejected" "origin";
    OTHER_BROWSER 400 "This sign-in belongs elsewhere" "It was not begun in this browser, or its address is incomplete." Some("Go back to the application and start again. Cookies must be allowed for this site."), "authorization.binding_failed" "binding";
    ALREADY_DONE 400 "This sign-in is already done" "It was answered before and cannot be used a second time." Some("Go back to the application; you may be signed in already."), "authorization.replay" "taken";
    TOO_LATE 400 "This sign-in took too long" "It was open for longer than a sign-in may take." Some("Nothing is lost: you can start again."), "authorization.expired" "expired";
    NO_START 400 "Sign-in starts at an application" "This page has nothing to continue." Some("Open the application that you want to use and sign in there."), "authorization.binding_failed" "missing";
    SETUP_LINK 400 "This set-up link does not work" "It is mistyped, older than an hour, or was opened before; or there is an administrator already." Some("While there is none, the command portcullis setup link shows a fresh one."), "admin.bootstrap_refused" "link";
    LOGOUT 400 "This request to log out was not accepted" "The application that sent you here made a request that cannot be understood. You are still signed in." Some("Go back to the application, or log out on your account page."), "logout.rejected" "malformed";
    BAD_FORM 400 "This form could not be read" "A field is missing, sent twice, too long or malformed." Some("Go back and try again."), "http.malformed" "form";
    PASSWORD_TOO_LONG 400 "This password cannot be used" "A password has at most 1024 bytes." Some("Go back and try again."), "login.failed" "too_long";
    PASSWORD_WITH_NUL 400 "This password cannot be used" "A password has no NUL character." Some("Go back and try again."), "login.failed" "nul";
    TAMPERED 400 "This form was not accepted" "It allows something that the application did not ask for." Some("Go back to the application and start again."), "consent.tampered" "scope";
    BUSY 503 "Too many people sign in right now" "Please try again in a few seconds." None, "login.busy" "hashing";
    RESTORED 503 "Sign-in is closed for a moment" "The database was restored from an older copy and is being checked." Some("Please try again later."), "db.restored" "waiting";
    CLOCK 503 "Sign-in is closed for a moment" "The clock of this server is wrong." Some("Please try again in a few seconds."), "node.unready" "clock";
    LEASE 503 "Sign-in is closed for a moment" "The server cannot write to its database." Some("Please try again in a few seconds."), "node.unready" "lease";
    BODY_TOO_LARGE 413 "This is too much" "The request has more than 16 KiB." None, "http.too_large" "body";
    URL_TOO_LONG 414 "This address is too long" "The address has more than 8 KiB." None, "http.too_large" "url";
    HEADERS_TOO_LARGE 431 "This request is too large" "Its headers have more than 32 KiB or 100 fields." None, "http.too_large" "headers";
    ENCODED_BODY 415 "This encoding is not accepted" "Bodies must not be compressed." None, "http.too_large" "encoding";
    TOO_MANY 429 "Too many requests" "Too many requests came from your network in a short time." Some("Please wait a moment and try again."), "ratelimit.hit" "ip";
    FORWARDED 400 "This request cannot be read" "The proxy in front passed on an address that is none." None, "http.bad_forwarded" "address";
    NETWORK 403 "Not from here" "This server does not answer your network." None, "http.denied" "network";
    DUPLICATE_COOKIE 400 "This form was not accepted" "Your browser sent a cookie of this site twice. Another site of the same domain may have set one of them." Some("Delete the cookies of this site, then start again."), "session.dup_cookie" "count";
    EMBEDDED 400 "This page must be opened by itself" "It was requested as a part of another page." Some("Open the application in a window of its own and start again."), "authz.rejected" "fetch_dest";
    HOST 400 "This request cannot be read" "It must say once which server it is for." None, "http.bad_host" "count";
    PLAIN 403 "Not without encryption" "This server is to be used over https only." None, "http.plain" "scheme";
    TOO_SLOW 408 "This took too long" "The request did not arrive in time." None, "http.timeout" "body";
    TOO_MANY_FORM_FIELDS 400 "This form has too many fields" "At most 64 are read." None, "http.too_large" "fields";
    TOO_MANY_FIELDS 400 "This request has too many fields" "At most 64 are read." None, "authz.rejected" "too_many";
}

impl ErrorPage {
    /// The status, as figures name it.
    fn code(self) -> &'static str {
        match self.status {
            400 => "400",
            403 => "403",
            404 => "404",
            408 => "408",
            413 => "413",
            414 => "414",
            415 => "415",
            429 => "429",
            431 => "431",
            _ => "503",
        }
    }

    /// The same words for another private reason.
    pub(in crate::http) const fn because(self, detail: Detail) -> Self {
        Self { detail, ..self }
    }
}

/// How long those wait who find us busy.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// Says no on a page of ours.
pub fn error_page(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    notice: ErrorPage,
) -> HttpResponse {
    let _ = app;
    linked_error_page(request, assets, notice, None)
}

/// Renders the error page of a notice, with a way on.
pub fn linked_error_page(
    request: &HttpRequest,
    assets: &Assets,
    notice: ErrorPage,
    link: Option<Link>,
) -> HttpResponse {
    refused(request, notice.code(), notice.detail, None);
    let id = RequestId::of(request);
    let template = ErrorTemplate {
        frame: &assets.frame,
        title: notice.title,
        reason: notice.reason,
        advice: notice.advice,
        link,
        error_id: &id,
        detail: None,
    };
    let status = StatusCode::from_u16(notice.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = page(status, &template, &PagePolicy::default());
    if notice.status == 503 {
        retry_after(&mut response, BUSY_FOR);
    }
    response
}

/// Says a protocol error on a page: the callback is not proven, so it goes nowhere else.
pub fn protocol_page(request: &HttpRequest, assets: &Assets, error: &Error) -> HttpResponse {
    refused(
        request,
        error.code.as_str(),
        error.detail,
        error.source.as_deref(),
    );
    let reason = match error.detail.cause {
        Cause::UnregisteredRedirectUri => {
            "The application wants the answer at an address that is not registered for it."
        }
        Cause::UnknownClient => {
            "The application that sent you here is not known, or is switched off."
        }
        _ if error.code == Code::TemporarilyUnavailable => {
            "The server cannot answer at the moment. Please try again shortly."
        }
        _ => "The application that sent you here made a request that cannot be understood.",
    };
    let id = RequestId::of(request);
    let unavailable = error.code == Code::TemporarilyUnavailable;
    let template = ErrorTemplate {
        frame: &assets.frame,
        title: "This request cannot be answered",
        reason,
        advice: Some(if unavailable {
            "Reload this page in a few seconds."
        } else {
            "Tell the people who run the application, and quote the error id."
        }),
        link: None,
        error_id: &id,
        detail: None,
    };
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = page(status, &template, &PagePolicy::default());
    if unavailable {
        retry_after(&mut response, BUSY_FOR);
    }
    response
}

/// Says a protocol error as JSON (RFC 6749 §5.2).
pub fn json(request: &HttpRequest, error: &Error) -> HttpResponse {
    refused(
        request,
        error.code.as_str(),
        error.detail,
        error.source.as_deref(),
    );
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let body = serde_json::json!({
        "error": error.code.as_str(),
        "error_description": error.description(),
        "error_id": RequestId::of(request),
    });
    let mut response = HttpResponse::build(status);
    response.insert_header(("Cache-Control", "no-store"));
    if error.code == Code::InvalidClient {
        response.insert_header(("WWW-Authenticate", "Basic realm=\"portcullis\""));
    }
    let mut response = response.json(body);
    if error.code == Code::TemporarilyUnavailable {
        retry_after(&mut response, BUSY_FOR);
    }
    response
}

/// Says an HTTP refusal of an endpoint that programs call.
pub fn json_error_page(request: &HttpRequest, notice: ErrorPage) -> HttpResponse {
    refused(request, "invalid_request", notice.detail, None);
    let status = StatusCode::from_u16(notice.status).unwrap_or(StatusCode::BAD_REQUEST);
    HttpResponse::build(status)
        .insert_header(("Cache-Control", "no-store"))
        .json(serde_json::json!({
            "error": "invalid_request",
            "error_description": notice.reason,
            "error_id": RequestId::of(request),
        }))
}

/// When to come again: whole seconds, at least one.
pub(in crate::http) fn retry_after(response: &mut HttpResponse, wait: Duration) {
    let seconds = HeaderValue::from(whole_seconds(wait).max(1));
    response.headers_mut().insert(RETRY_AFTER, seconds);
}

/// 404, as a page.
pub async fn not_found(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    error_page(&request, &app, &assets, ErrorPage::NOT_FOUND)
}

/// 405 with what may be.
pub fn method_not_allowed(request: &HttpRequest, _: &App, methods: &[&str]) -> HttpResponse {
    refused(request, "405", Detail::new("http.method", "method"), None);
    HttpResponse::MethodNotAllowed()
        .insert_header(("Allow", methods.join(", ")))
        .insert_header(("Cache-Control", "no-store"))
        .finish()
}

/// A refusal: counted, and told in one log line with what the client was not told. `code` is what it
/// was told: the protocol's error code, or the status.
pub fn refused(
    request: &HttpRequest,
    code: &'static str,
    detail: Detail,
    source: Option<&(dyn std::error::Error + Send + Sync)>,
) {
    let endpoint = access_log::route(request);
    REFUSED.count([endpoint, code.into(), detail.reason.into()]);
    log(request, detail, source);
}

/// One log line for something that an operator may have to look at.
pub fn log(
    request: &HttpRequest,
    detail: Detail,
    source: Option<&(dyn std::error::Error + Send + Sync)>,
) {
    let About {
        request_id,
        trace_id,
        client_id,
        user_ref,
        ip,
    } = About::of(request);
    let Detail {
        event,
        reason,
        severity,
        description,
        ..
    } = detail;
    let description = description.map(Description::as_str);
    let source = source.map(ToString::to_string);
    let path = request.path();
    match severity {
        Severity::Normal if source.is_none() => {
            tracing::warn!(
                event,
                reason,
                request_id,
                trace_id,
                client_id,
                user_ref,
                ip,
                error_id = request_id,
                path,
                description
            );
        }
        severity => {
            let severity = if severity == Severity::High {
                "high"
            } else {
                "normal"
            };
            tracing::error!(
                event,
                reason,
                severity,
                request_id,
                trace_id,
                client_id,
                user_ref,
                ip,
                error_id = request_id,
                path,
                description,
                source
            );
        }
    }
}

/// One log line for something that went well and that operators follow.
pub fn note(request: &HttpRequest, event: &'static str, reason: &'static str) {
    let About {
        request_id,
        trace_id,
        client_id,
        user_ref,
        ip,
    } = About::of(request);
    let path = request.path();
    tracing::info!(
        event, reason, request_id, trace_id, client_id, user_ref, ip, path
    );
}
