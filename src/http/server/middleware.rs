//! Checks and headers of every request of the public listener: client address, rate limits, access lists, transport,
//! canonical path, host, size limits, security headers and request id.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Once;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header::{HOST, HeaderName, HeaderValue, LOCATION};
use actix_web::http::{ConnectionType, Method, Version, header};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse};

use futures_core::Stream;

use crate::app::App;
use crate::config::limits::{
    BODY_TIME, HANDLER_TIME, HEADER_BYTES, HEADER_FIELDS, URL_BYTES, WAITING_PAGES,
};
use crate::config::{Address, Authority, is_in};
use crate::http::assets::Assets;
use crate::http::error::{self, ErrorPage};
use crate::http::server::access_log::{self, RequestId};
use crate::http::server::client_address::{self, BadForwarded, ClientAddress, Located};
use crate::http::server::cors::Readers;
use crate::http::server::rate_limit::{self, Class, Limits};
use crate::http::server::timed_stream::{ActiveRequest, ConnectionState};
use crate::keys::KeyError;
use crate::oauth::{Code, Detail};

const FIXED: [(&str, &str); 3] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// For all responses except redirects, which show nothing. The long `state` of a client and this header together would
/// exceed the buffers of some proxies.
const PERMISSIONS: (&str, &str) = (
    "permissions-policy",
    "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), hid=(), \
         magnetometer=(), microphone=(), midi=(), payment=(), screen-wake-lock=(), serial=(), usb=(), \
         xr-spatial-tracking=()",
);

/// Runs as the outermost layer of the public listener.
///
/// # Errors
/// Those of the inner service.
pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let (Some(app), Some(assets), Some(limits)) = (
        request.app_data::<Data<App>>().cloned(),
        request.app_data::<Data<Assets>>().cloned(),
        request.app_data::<Data<Limits>>().cloned(),
    ) else {
        return Ok(request.into_response(HttpResponse::InternalServerError().finish()));
    };
    let started = app.clock.uptime();
    let active = ConnectionState::begin(request.request());
    let peer = client_address::peer(request.peer_addr());
    let trusted = is_in(&app.config.http.trusted_proxies, peer);
    let request_id = RequestId::begin(request.headers(), trusted, &app);
    request.extensions_mut().insert(request_id.clone());
    let (request, body) = retain_body(request);
    let found = locate(&request, &app);
    // Rate limits precede all other checks, so that rejected requests are limited as well.
    let refusal = too_many(request.request(), &limits, &assets)
        .or_else(|| reject_bad_forwarded(&request, found, &app, &assets))
        .or_else(|| reject_malformed(&request, &app, &assets))
        .or_else(|| reject_crowd(request.request(), &app, &assets));
    let refusal = match refusal {
        Some(refusal) => Some(refusal),
        None => reject_unready(request.request(), &app, &assets).await,
    };
    let response = match refusal {
        Some(refusal) => request.into_response(refusal),
        None => next.call(request).await?.map_into_boxed_body(),
    };
    let mut response = response.map_body(|_, inner| {
        BoxBody::new(ResponseBody {
            inner,
            _body: body,
            _active: active,
        })
    });
    let (http, status) = (response.request().clone(), response.status());
    let headers = response.headers_mut();
    let permissions = (!headers.contains_key(LOCATION)).then_some(PERMISSIONS);
    if let Some(readers) = Readers::of(http.path()) {
        readers.describe(&http, &app, status, headers).await;
    }
    rate_limit::describe(&http, headers);
    for (name, value) in FIXED.into_iter().chain(permissions) {
        let name = HeaderName::from_static(name);
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    if app.issuer.is_https() {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=63072000; includeSubDomains"),
        );
    }
    request_id.describe(headers);
    if app.draining.is_on() {
        // Close the connection so that the client reconnects to another node.
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    access_log::write_access_log(&http, response.status(), started, &app);
    Ok(response)
}

/// Runs as the outermost layer of the management listener: marks the connection as in use, so that its timeouts apply
/// as on the public listener, and checks size, method, path and host of the request as there.
///
/// # Errors
/// Those of the inner service.
pub async fn guard_management(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(app) = request.app_data::<Data<App>>().cloned() else {
        return Ok(request.into_response(HttpResponse::InternalServerError().finish()));
    };
    let active = ConnectionState::begin(request.request());
    let (request, body) = retain_body(request);
    let http = request.request();
    let refusal = reject_connect(http)
        .or_else(|| Some(error::json_error_page(http, malformed(http)?)))
        .or_else(|| reject_foreign_host(http, &app));
    let response = match refusal {
        Some(refusal) => request.into_response(refusal),
        None => next.call(request).await?.map_into_boxed_body(),
    };
    Ok(response.map_body(|_, inner| {
        BoxBody::new(ResponseBody {
            inner,
            _body: body,
            _active: active,
        })
    }))
}

/// Rejects with 421 a request of the management listener whose host is a public name of another server. A web page
/// could otherwise read the responses by DNS rebinding, from a browser on this machine or in its network.
fn reject_foreign_host(request: &HttpRequest, app: &App) -> Option<HttpResponse> {
    let mut hosts = request.headers().get_all(HOST);
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default(),
        // A health check, and no browser.
        (None, _) if request.version() == Version::HTTP_10 => return None,
        _ => return Some(error::json_error_page(request, ErrorPage::HOST)),
    };
    let listener = match &app.config.listen.management {
        Address::Tcp { host, .. } => Authority::parse(host),
        Address::Unix(_) => None,
    };
    let own = app.config.http.accept_hosts.iter();
    let mut own = own.chain([app.issuer.authority()]).chain(&listener);
    let is_served = Authority::parse(host)
        .is_some_and(|named| named.is_local_name() || own.any(|own| own.is_same_host(&named)));
    (!is_served).then(|| misdirected(request, host, "local names and `http.accept_hosts`"))
}

/// Applies the request timeout of a route: the time to receive the body (`BODY_TIME`) and to handle the request
/// (`HANDLER_TIME`).
///
/// # Errors
/// Those of the inner service.
pub async fn request_timeout(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let http = request.request().clone();
    match tokio::time::timeout(BODY_TIME + HANDLER_TIME, next.call(request)).await {
        Ok(response) => Ok(response?.map_into_boxed_body()),
        Err(_) => {
            let response = error::json(
                &http,
                &crate::oauth::Error {
                    code: Code::TemporarilyUnavailable,
                    detail: Detail::high("http.timeout", "handler"),
                    source: None,
                    compared: None,
                },
            );
            Ok(ServiceResponse::new(http, response))
        }
    }
}

/// A request body that is kept until the response is sent. actix reads a dropped chunked body to its end, however long
/// it is. If an unfinished body still exists, actix closes the connection instead.
type Body = Rc<RefCell<Payload>>;

struct ResponseBody {
    inner: BoxBody,
    _body: Option<Body>,
    _active: ActiveRequest,
}

impl MessageBody for ResponseBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.inner.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.inner).poll_next(context)
    }
}

struct Reader(Body);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

/// Keeps the payload alive until the response is sent (actix drains dropped payloads).
fn retain_body(mut request: ServiceRequest) -> (ServiceRequest, Option<Body>) {
    let payload = request.take_payload();
    if matches!(payload, Payload::None) {
        return (request, None);
    }
    let body = Rc::new(RefCell::new(payload));
    let reader = Box::pin(Reader(Rc::clone(&body)));
    request.set_payload(Payload::Stream { payload: reader });
    (request, Some(body))
}

/// Determines the client address of a request and stores it with the request. If it is unknown, the address of the peer
/// is stored.
fn locate(request: &ServiceRequest, app: &App) -> Result<Located, BadForwarded> {
    let rules = &app.config.http;
    let peer = client_address::peer(request.peer_addr());
    let found = client_address::resolve(peer, request.headers(), &rules.trusted_proxies);
    if client_address::is_undeclared_proxy(peer, request.headers(), &rules.trusted_proxies) {
        static LOGGED: Once = Once::new();
        LOGGED.call_once(|| {
            tracing::warn!(
                event = "http.proxy_undeclared",
                reason = "forwarded",
                ip = %peer,
                "a proxy that is not in `http.trusted_proxies` sends forwarding headers, which are ignored; add it, or all users share its address and its rate limits"
            );
        });
    }
    request
        .extensions_mut()
        .insert(ClientAddress(found.unwrap_or(Located::Behind(peer))));
    found
}

/// Rejects a request whose client address is invalid, whose network is denied, or that arrives unencrypted from another
/// machine.
fn reject_bad_forwarded(
    request: &ServiceRequest,
    found: Result<Located, BadForwarded>,
    app: &App,
    assets: &Assets,
) -> Option<HttpResponse> {
    let (http, rules) = (request.request(), &app.config.http);
    let reject = |page| Some(error::error_page(http, assets, page));
    let peer = client_address::peer(request.peer_addr());
    let is_served = match found {
        Err(BadForwarded) => return reject(ErrorPage::FORWARDED),
        Ok(Located::Client(address)) => {
            (rules.allow.is_empty() || is_in(&rules.allow, address)) && !is_in(&rules.deny, address)
        }
        Ok(Located::Behind(_)) => {
            error::log(http, Detail::new("http.bad_forwarded", "unknown"), None);
            // The client may be in any network.
            rules.allow.is_empty() && rules.deny.is_empty()
        }
    };
    if !is_served {
        return reject(ErrorPage::NETWORK);
    }
    let is_protected = ConnectionState::is_encrypted(http)
        || !app.issuer.is_https()
        || peer.is_loopback()
        || is_in(&rules.trusted_proxies, peer);
    if is_protected {
        return None;
    }
    if request.method() == Method::GET && request.path() == "/" {
        error::log(http, Detail::new("http.plain", "redirect"), None);
        return Some(
            HttpResponse::PermanentRedirect()
                .insert_header((header::LOCATION, app.issuer.url("/")))
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .finish(),
        );
    }
    reject(ErrorPage::PLAIN)
}

/// Charges the request to its address.
fn too_many(request: &HttpRequest, limits: &Limits, assets: &Assets) -> Option<HttpResponse> {
    let too_many = limits.charge_address(request).err()?;
    Some(too_many.respond(request, assets))
}

/// Rejects `CONNECT`, because this server is not a proxy. Its target has no path, so no route answers it.
fn reject_connect(request: &HttpRequest) -> Option<HttpResponse> {
    (request.method() == Method::CONNECT).then(|| error::method_not_allowed(request, &[]))
}

/// Returns the error of a request that exceeds a size limit, or whose path is not in its one spelling.
fn malformed(request: &HttpRequest) -> Option<ErrorPage> {
    let target = request.uri().path_and_query();
    if target.map_or(0, |target| target.as_str().len()) > URL_BYTES {
        return Some(ErrorPage::URL_TOO_LONG);
    }
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let (fields, bytes) = request
        .headers()
        .iter()
        .fold((0, 0), |(fields, bytes), field| {
            (fields + 1, bytes + size(field))
        });
    if fields > HEADER_FIELDS || bytes > HEADER_BYTES {
        return Some(ErrorPage::HEADERS_TOO_LARGE);
    }
    (!is_canonical(request.uri().path())).then_some(ErrorPage::NOT_FOUND)
}

/// Rejects a request that exceeds a size limit, or whose method, path or host is wrong.
fn reject_malformed(request: &ServiceRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let http = request.request();
    reject_connect(http)
        .or_else(|| Some(error::error_page(http, assets, malformed(http)?)))
        .or_else(|| reject_wrong_host(request, app, assets))
}

/// Rejects requests that depend on the database while this node must not change state: the database was restored from
/// an older backup, the clock is wrong, or the node made no write in the last 30 s. Keys and metadata are served, and
/// the feed reports its own state. Unless the database was restored, revocation and logout are served, because a
/// revocation does more good than harm.
async fn reject_unready(request: &HttpRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let class = Class::of(request.path());
    let is_static = matches!(
        class,
        Class::Metadata | Class::Feed | Class::Assets | Class::Other
    );
    // A preflight changes nothing. Were it refused, a script could not read the refusal of the request that follows.
    if is_static || request.method() == Method::OPTIONS {
        return None;
    }
    let error = app.may_change_state().await.err()?;
    let page = match &error {
        KeyError::Restored => ErrorPage::RESTORED,
        _ if matches!(class, Class::Revoke | Class::Logout) => return None,
        KeyError::Clock => ErrorPage::CLOCK,
        _ => ErrorPage::LEASE,
    };
    Some(match (class.is_page(), error) {
        (true, _) => error::error_page(request, assets, page),
        (false, KeyError::Restored) => error::json(
            request,
            &crate::oauth::Error {
                code: Code::TemporarilyUnavailable,
                detail: Detail::new("db.restored", "waiting"),
                source: None,
                compared: None,
            },
        ),
        (false, error) => error::json(request, &error.into()),
    })
}

/// Rejects pages while too many others wait for the database, so that those waiting are served in time.
fn reject_crowd(request: &HttpRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let is_crowded =
        Class::of(request.path()).is_page() && app.page_store.waiting_pages() >= WAITING_PAGES;
    is_crowded.then(|| error::error_page(request, assets, ErrorPage::BUSY))
}

/// Returns whether a path has its one spelling: no escapes, and no empty, dot or parameter segments. Router and access
/// rules of a proxy then match the same path.
fn is_canonical(path: &str) -> bool {
    path.starts_with('/')
        && path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b))
        && !path.contains("//")
        && !path.split('/').any(|part| part == "." || part == "..")
}

/// Rejects with 421 a request for another host. The issuer is a constant, never taken from `Host`. Another loopback
/// spelling of a loopback issuer is redirected to the configured one.
fn reject_wrong_host(request: &ServiceRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let mut hosts = request.headers().get_all(HOST);
    // RFC 9112 §3.2: exactly one, even if the target has an authority.
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        let http = request.request();
        return Some(error::error_page(http, assets, ErrorPage::HOST));
    };
    let host = match request.uri().authority() {
        Some(target) => target.as_str(),
        None => host.to_str().unwrap_or_default(),
    };
    let (issuer, authority) = (&app.issuer, app.issuer.authority());
    let named = Authority::parse(host);
    if named
        .as_ref()
        .is_some_and(|named| issuer.is_at(named) || app.config.http.accepts_host(named))
    {
        return None;
    }
    let is_loopback_spelling = named.is_some_and(|named| {
        named.is_loopback() && named.is_same_port(authority, issuer.default_port())
    });
    if issuer.is_loopback() && is_loopback_spelling && request.method() == Method::GET {
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |target| target.as_str());
        return Some(
            HttpResponse::TemporaryRedirect()
                .insert_header((header::LOCATION, app.issuer.url(target)))
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .finish(),
        );
    }
    Some(misdirected(request.request(), host, &authority.to_string()))
}

/// Answers 421, with the host that the request names.
fn misdirected(request: &HttpRequest, host: &str, server: &str) -> HttpResponse {
    error::refused(request, "421", Detail::new("http.bad_host", "host"), None);
    // The one response that repeats a part of the request, because the operator of the proxy needs it.
    let received: String = host
        .chars()
        .filter(|c| c.is_ascii_graphic())
        .take(255)
        .collect();
    HttpResponse::MisdirectedRequest()
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(format!("Error: this server answers for {server}, and was asked for {received}. Check the issuer setting and the proxy's Host header.\n"))
}

#[cfg(test)]
mod tests {
    use super::is_canonical;

    #[test]
    fn one_path_has_one_spelling() {
        for good in [
            "/",
            "/oauth2/authorize",
            "/.well-known/openid-configuration",
            "/assets/a-b_c.css",
        ] {
            assert!(is_canonical(good), "{good}");
        }
        for bad in [
            "//authorize",
            "/%61uthorize",
            "/authorize;x=1",
            "/./authorize",
            "/x/../authorize",
            "*",
            "",
        ] {
            assert!(!is_canonical(bad), "{bad}");
        }
    }
}
