//! The one map from errors to responses: JSON, redirect or page. Each error is logged once, here, with its private
//! reason. The response contains the public code and an error id that the user can quote.

use std::time::Duration;

use actix_web::http::header::{HeaderValue, LOCATION, RETRY_AFTER};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::admin::AdminError;
use crate::app::App;
use crate::db;
use crate::http::assets::{Assets, Frame};
use crate::http::response::{PagePolicy, continue_to, deliver, page, see_other, whole_seconds};
use crate::http::server::access_log::{self, About, RequestId};
use crate::metrics::REFUSED;
use crate::oauth::request::authorize::AuthorizeError;
use crate::oauth::{Cause, Code, Compared, Description, Detail, Error, Severity};

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorTemplate<'a> {
    frame: &'a Frame,
    title: &'a str,
    reason: &'a str,
    advice: Option<&'a str>,
    link: Option<Link>,
    error_id: &'a str,
    detail: Option<String>,
}

/// A link by which the user can continue from an error page.
#[derive(Clone, Debug)]
pub struct Link {
    /// Label of the button.
    pub label: String,
    /// A path of this server, or a URI of the client.
    pub href: String,
}

/// The path of the account page. It is a constant: no request chooses where a sign-in without a client ends.
pub(in crate::http) const ACCOUNT: &str = "/account";

impl Link {
    /// Returns the link of an error page that has no better one. Returns `None` where this server refuses the browser's
    /// network, its proxy or its scheme, because it would refuse the next page too.
    fn onward(request: &HttpRequest, error: ErrorPage) -> Option<Self> {
        const FINAL: [ErrorPage; 4] = [
            ErrorPage::NETWORK,
            ErrorPage::PLAIN,
            ErrorPage::HOST,
            ErrorPage::FORWARDED,
        ];
        match error.status {
            _ if FINAL.contains(&error) => None,
            // An empty reference is the address of the page itself (RFC 3986 §4.4). A form cannot be repeated by a link.
            429 | 503 => (request.method() == Method::GET).then(|| Self {
                label: "Try again".to_owned(),
                href: String::new(),
            }),
            _ => Some(Self::to_account()),
        }
    }

    fn to_account() -> Self {
        Self {
            label: "Go to your account".to_owned(),
            href: ACCOUNT.to_owned(),
        }
    }
}

/// An error page with fixed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    status: u16,
    title: &'static str,
    reason: &'static str,
    advice: Option<&'static str>,
    detail: Detail,
}

macro_rules! error_pages {
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

error_pages! {
    NOT_FOUND 404 "Page not found" "There is no page at this address." None, "http.404" "path";
    FORGED 403 "This form was not accepted" "The form did not come from a page of this server, or the page is from an earlier visit." Some("Go back to the application and start again."), "csrf.rejected" "token";
    CROSS_SITE 403 "This form was not accepted" "The form was sent by another site." Some("Go back to the application and start again."), "csrf.rejected" "origin";
    OTHER_BROWSER 400 "This sign-in belongs to another browser" "It was not started in this browser, or its address is incomplete." Some("Go back to the application and start again. Cookies must be allowed for this site."), "authorization.binding_failed" "binding";
    ALREADY_DONE 400 "This sign-in is already done" "It was completed before and cannot be used a second time." Some("Go back to the application; you may be signed in already."), "authorization.replay" "taken";
    TOO_LATE 400 "This sign-in took too long" "It was open for longer than a sign-in may take." Some("Nothing is lost: you can start again."), "authorization.expired" "expired";
    NO_START 400 "Nothing to continue" "The address of this page is incomplete." Some("Open the application that you want to use and sign in there."), "authorization.binding_failed" "missing";
    SETUP_LINK 400 "This set-up link does not work" "It is incomplete, has expired or was opened before, or the server has an administrator already." Some("As long as there is no administrator, the command portcullis setup link shows a new link."), "admin.bootstrap_refused" "link";
    LOGOUT 400 "This request to sign out was not accepted" "The application that sent you here made a request that cannot be understood. You are still signed in." Some("Go back to the application, or sign out on your account page."), "logout.rejected" "malformed";
    BAD_FORM 400 "This form could not be read" "A field is missing, sent twice, too long or malformed." Some("Go back and try again."), "http.malformed" "form";
    TAMPERED 400 "This form was not accepted" "It grants something that the application did not request." Some("Go back to the application and start again."), "consent.tampered" "scope";
    BUSY 503 "Too many requests at the moment" "Please try again in a few seconds." None, "login.busy" "queue";
    RESTORED 503 "Sign-in is temporarily unavailable" "The database was restored from an older copy and is being checked." Some("Please try again later."), "db.restored" "waiting";
    CLOCK 503 "Sign-in is temporarily unavailable" "The clock of this server is wrong." Some("Please try again in a few seconds."), "node.unready" "clock";
    LEASE 503 "Sign-in is temporarily unavailable" "The server cannot write to its database." Some("Please try again in a few seconds."), "node.unready" "lease";
    BODY_TOO_LARGE 413 "Request too large" "The request has more than 16 KiB." None, "http.too_large" "body";
    URL_TOO_LONG 414 "Address too long" "The address has more than 8 KiB." None, "http.too_large" "url";
    HEADERS_TOO_LARGE 431 "Request too large" "Its headers have more than 32 KiB or 100 fields." None, "http.too_large" "headers";
    ENCODED_BODY 415 "This encoding is not accepted" "Bodies must not be compressed." None, "http.too_large" "encoding";
    TOO_MANY 429 "Too many requests" "Too many requests came from your network in a short time." Some("Please wait a moment and try again."), "ratelimit.hit" "ip";
    FORWARDED 400 "This request cannot be read" "The reverse proxy sent an invalid client address." None, "http.bad_forwarded" "address";
    NETWORK 403 "Access denied" "This server does not accept requests from your network." None, "http.denied" "network";
    DUPLICATE_COOKIE 400 "This form was not accepted" "Your browser sent a cookie of this site twice. Another site of the same domain may have set one of them." Some("Delete the cookies of this site, then start again."), "session.dup_cookie" "count";
    EMBEDDED 400 "This page cannot be embedded" "It was requested as a part of another page." Some("Open the application in a window of its own and start again."), "authz.rejected" "fetch_dest";
    HOST 400 "This request cannot be read" "It must have exactly one Host header." None, "http.bad_host" "count";
    PLAIN 403 "Encryption required" "This server accepts requests over https only." None, "http.plain" "scheme";
    TOO_SLOW 408 "Request timed out" "The request did not arrive in time." None, "http.timeout" "body";
    TOO_MANY_FORM_FIELDS 400 "This form has too many fields" "At most 64 fields are accepted." None, "http.too_large" "fields";
    TOO_MANY_FIELDS 400 "This request has too many fields" "At most 64 fields are accepted." None, "authz.rejected" "too_many";
}

impl ErrorPage {
    /// Returns the status as a metric label.
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

    /// Returns the page with another private reason.
    pub(in crate::http) const fn with_detail(self, detail: Detail) -> Self {
        Self { detail, ..self }
    }
}

/// Why a handler renders no page of its own.
pub(in crate::http) enum HandlerError {
    ErrorPage(ErrorPage),
    /// An error page with a link by which the user can continue.
    Linked(ErrorPage, Box<Option<Link>>),
    AuthorizeError(AuthorizeError),
    /// The account page answers the request.
    Account,
}

impl From<ErrorPage> for HandlerError {
    fn from(page: ErrorPage) -> Self {
        Self::ErrorPage(page)
    }
}

impl From<AuthorizeError> for HandlerError {
    fn from(error: AuthorizeError) -> Self {
        Self::AuthorizeError(error)
    }
}

impl From<Error> for HandlerError {
    fn from(error: Error) -> Self {
        Self::AuthorizeError(AuthorizeError::Page(error))
    }
}

impl From<db::Error> for HandlerError {
    fn from(error: db::Error) -> Self {
        let busy = matches!(error, db::Error::Busy);
        let error = Error::from(error);
        match busy {
            true => ErrorPage::BUSY.with_detail(error.detail).into(),
            false => error.into(),
        }
    }
}

impl From<AdminError> for HandlerError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Storage(error) => error.into(),
            // Handlers answer the errors that a user can correct. Others mean that the form was altered.
            _ => Self::ErrorPage(ErrorPage::BAD_FORM),
        }
    }
}

impl HandlerError {
    /// Answers a form of this server. An error that is sent to the client leaves the origin by a page that
    /// continues, like every response to a form.
    pub(in crate::http) fn respond_to_form(
        self,
        request: &HttpRequest,
        app: &App,
        assets: &Assets,
    ) -> HttpResponse {
        let response = self.respond(request, app, assets);
        let to = response.headers().get(LOCATION);
        match to.and_then(|to| to.to_str().ok()) {
            Some(to) => continue_to(to, assets),
            None => response,
        }
    }

    pub(in crate::http) fn respond(
        self,
        request: &HttpRequest,
        app: &App,
        assets: &Assets,
    ) -> HttpResponse {
        match self {
            Self::ErrorPage(page) => error_page(request, assets, page),
            Self::Linked(page, link) => linked_error_page(request, assets, page, *link),
            Self::AuthorizeError(AuthorizeError::Page(error)) => {
                protocol_page(request, assets, &error)
            }
            Self::AuthorizeError(AuthorizeError::Callback(callback, error)) => {
                refused_by_protocol(request, &error);
                deliver(callback.refuse(&error, app.issuer.as_str()), app, assets)
            }
            Self::Account => see_other(ACCOUNT),
        }
    }
}

/// `Retry-After` of 503 responses.
pub(in crate::http) const BUSY_RETRY: Duration = Duration::from_secs(2);

/// Renders an error page.
pub fn error_page(request: &HttpRequest, assets: &Assets, error: ErrorPage) -> HttpResponse {
    linked_error_page(request, assets, error, None)
}

fn linked_error_page(
    request: &HttpRequest,
    assets: &Assets,
    error: ErrorPage,
    link: Option<Link>,
) -> HttpResponse {
    refused(request, error.code(), error.detail, None);
    let id = RequestId::of(request);
    let template = ErrorTemplate {
        frame: &assets.frame,
        title: error.title,
        reason: error.reason,
        advice: error.advice,
        link: link.or_else(|| Link::onward(request, error)),
        error_id: &id,
        detail: None,
    };
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = page(status, &template, &PagePolicy::default());
    if error.status == 503 {
        retry_after(&mut response, BUSY_RETRY);
    }
    response
}

/// Renders a protocol error as a page, where there is no verified callback to redirect to.
fn protocol_page(request: &HttpRequest, assets: &Assets, error: &Error) -> HttpResponse {
    refused_by_protocol(request, error);
    let reason = match error.detail.cause {
        Cause::UnregisteredRedirectUri => {
            "The application requested a redirect to an address that is not registered for it."
        }
        Cause::UnknownClient => {
            "The application that sent you here is not registered, or is disabled."
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
            "Contact the operator of the application and quote the error id."
        }),
        link: (!unavailable).then(Link::to_account),
        error_id: &id,
        detail: None,
    };
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = page(status, &template, &PagePolicy::default());
    if unavailable {
        retry_after(&mut response, BUSY_RETRY);
    }
    response
}

/// Renders a protocol error as JSON (RFC 6749 §5.2).
pub fn json(request: &HttpRequest, error: &Error) -> HttpResponse {
    refused_by_protocol(request, error);
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
        retry_after(&mut response, BUSY_RETRY);
    }
    response
}

/// Renders an HTTP error of a machine-facing endpoint as JSON.
pub fn json_error_page(request: &HttpRequest, error: ErrorPage) -> HttpResponse {
    refused(request, "invalid_request", error.detail, None);
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
    HttpResponse::build(status)
        .insert_header(("Cache-Control", "no-store"))
        .json(serde_json::json!({
            "error": "invalid_request",
            "error_description": error.reason,
            "error_id": RequestId::of(request),
        }))
}

/// Sets `Retry-After` to whole seconds, at least one.
pub(in crate::http) fn retry_after(response: &mut HttpResponse, wait: Duration) {
    let seconds = HeaderValue::from(whole_seconds(wait).max(1));
    response.headers_mut().insert(RETRY_AFTER, seconds);
}

/// Answers 404 with a page.
pub async fn not_found(request: HttpRequest, assets: Data<Assets>) -> HttpResponse {
    error_page(&request, &assets, ErrorPage::NOT_FOUND)
}

/// Answers 405 with the allowed methods.
pub fn method_not_allowed(request: &HttpRequest, methods: &[&str]) -> HttpResponse {
    refused(request, "405", Detail::new("http.method", "method"), None);
    HttpResponse::MethodNotAllowed()
        .insert_header(("Allow", methods.join(", ")))
        .insert_header(("Cache-Control", "no-store"))
        .finish()
}

/// Counts and logs a rejected request, with the reason that the response does not contain. `code` is the one in the
/// response: the protocol's error code, or the status.
pub fn refused(
    request: &HttpRequest,
    code: &'static str,
    detail: Detail,
    source: Option<&(dyn std::error::Error + Send + Sync)>,
) {
    count_refused(request, code, detail);
    log(request, detail, source);
}

/// Does the same as [`refused`] for an error of the protocol, with what was received and what is registered.
pub(in crate::http) fn refused_by_protocol(request: &HttpRequest, error: &Error) {
    count_refused(request, error.code.as_str(), error.detail);
    let source = error.source.as_deref();
    write(request, error.detail, source, error.compared.as_deref());
}

fn count_refused(request: &HttpRequest, code: &'static str, detail: Detail) {
    let endpoint = access_log::route(request);
    REFUSED.count([endpoint, code.into(), detail.reason.into()]);
}

/// Writes a log line that an operator may have to act on.
pub fn log(
    request: &HttpRequest,
    detail: Detail,
    source: Option<&(dyn std::error::Error + Send + Sync)>,
) {
    write(request, detail, source, None);
}

/// Writes a log line about an error that does not end the request, with what was received and what is registered.
pub(in crate::http) fn log_error(request: &HttpRequest, error: &Error) {
    let source = error.source.as_deref();
    write(request, error.detail, source, error.compared.as_deref());
}

fn write(
    request: &HttpRequest,
    detail: Detail,
    source: Option<&(dyn std::error::Error + Send + Sync)>,
    compared: Option<&Compared>,
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
    let client_id = client_id.or_else(|| Some(compared?.client_id.as_ref()?.to_string()));
    let present = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
    let received = compared.and_then(|compared| present(&compared.received));
    let registered = compared.and_then(|compared| present(&compared.registered));
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
                path,
                description,
                received,
                registered
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
                path,
                description,
                received,
                registered,
                source
            );
        }
    }
}

/// Writes a log line about a success that operators follow.
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
