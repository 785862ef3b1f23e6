//! What holds for every request and every answer of the public listener: who asks, how often, from
//! where and over what; one canonical path, our host alone, the size limits, the security headers, a
//! request id.

use std::cell::RefCell;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Once;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header::{HOST, HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Method, header};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse};

use futures_core::Stream;

use crate::app::App;
use crate::config::limits::{BODY_TIME, HANDLER_TIME, HEADER_BYTES, HEADER_FIELDS, URL_BYTES};
use crate::config::{Authority, is_in};
use crate::http::assets::Assets;
use crate::http::error::{self, ErrorPage};
use crate::http::server::access_log::{self, RequestId};
use crate::http::server::client_address::{self, BadForwarded, ClientAddress};
use crate::http::server::rate_limit::{self, Class, Limits};
use crate::http::server::timed_stream::{Busy, ConnectionState};
use crate::keys::KeyError;
use crate::oauth::{Code, Detail};

const FIXED: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), hid=(), \
         magnetometer=(), microphone=(), midi=(), payment=(), screen-wake-lock=(), serial=(), usb=(), \
         xr-spatial-tracking=()",
    ),
];

/// The outermost layer.
///
/// # Errors
/// None of its own.
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
    let begun = app.clock.uptime();
    let busy = ConnectionState::begin(request.request());
    let peer = client_address::peer(request.peer_addr());
    let trusted = is_in(&app.config.http.trusted_proxies, peer);
    let request_id = RequestId::begin(request.headers(), trusted, &app);
    request.extensions_mut().insert(request_id.clone());
    let (request, body) = retain_body(request);
    let found = locate(&request, &app);
    // Before anything is refused, so that whoever is refused meets a limit as well.
    let refusal = too_many(request.request(), &limits, &app, &assets)
        .or_else(|| reject_bad_forwarded(&request, found, &app, &assets))
        .or_else(|| refuse(&request, &app, &assets));
    let refusal = match refusal {
        Some(refusal) => Some(refusal),
        None => unfit(request.request(), &app, &assets).await,
    };
    let response = match refusal {
        Some(refusal) => request.into_response(refusal),
        None => next.call(request).await?.map_into_boxed_body(),
    };
    let mut response = response.map_body(|_, answer| {
        BoxBody::new(Holding {
            answer,
            _body: body,
            _busy: busy,
        })
    });
    let http = response.request().clone();
    let headers = response.headers_mut();
    rate_limit::describe(&http, headers);
    for (name, value) in FIXED {
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
        // Whoever asks again does so elsewhere.
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    access_log::write_access_log(&http, response.status(), begun, &app);
    Ok(response)
}

/// Around the management listener: a request is being answered, so that its connection is watched as on the
/// public listener.
///
/// # Errors
/// None of its own.
pub async fn in_use(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let busy = ConnectionState::begin(request.request());
    let response = next.call(request).await?.map_into_boxed_body();
    Ok(response.map_body(|_, answer| {
        BoxBody::new(Holding {
            answer,
            _body: None,
            _busy: busy,
        })
    }))
}

/// Around each route: a request that takes too long is given up. Work on it begins when its body is here.
///
/// # Errors
/// None of its own.
pub async fn in_time(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let http = request.request().clone();
    match tokio::time::timeout(BODY_TIME + HANDLER_TIME, next.call(request)).await {
        Ok(response) => Ok(response?.map_into_boxed_body()),
        Err(_) => {
            let refusal = error::json(
                &http,
                &crate::oauth::Error {
                    code: Code::TemporarilyUnavailable,
                    detail: Detail::high("http.timeout", "handler"),
                    source: None,
                },
            );
            Ok(ServiceResponse::new(http, refusal))
        }
    }
}

/// A request's body that lives until the answer is sent. actix reads a chunked body that was dropped to
/// its end, however long; one that is still there and unfinished makes it hang up.
type Body = Rc<RefCell<Payload>>;

struct Holding {
    answer: BoxBody,
    _body: Option<Body>,
    _busy: Busy,
}

impl MessageBody for Holding {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.answer).poll_next(context)
    }
}

struct Reader(Body);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

/// Keeps a hand on the request's body, if it has one.
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

/// Finds out where a request comes from. When that cannot be said it counts for the peer.
fn locate(request: &ServiceRequest, app: &App) -> Result<IpAddr, BadForwarded> {
    let rules = &app.config.http;
    let peer = client_address::peer(request.peer_addr());
    let found = client_address::resolve(peer, request.headers(), &rules.trusted_proxies);
    if client_address::is_undeclared_proxy(peer, request.headers(), &rules.trusted_proxies) {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            tracing::warn!(
                event = "http.proxy_undeclared",
                reason = "forwarded",
                ip = %peer,
                "a proxy passes on for whom it speaks, and is not believed; name it in `http.trusted_proxies`, or all people share its address and its limits"
            );
        });
    }
    request
        .extensions_mut()
        .insert(ClientAddress(found.unwrap_or(peer)));
    found
}

/// Refuses a request when nobody can say where it comes from, when its network is shut out, or when it
/// came in the clear from another machine.
fn reject_bad_forwarded(
    request: &ServiceRequest,
    found: Result<IpAddr, BadForwarded>,
    app: &App,
    assets: &Assets,
) -> Option<HttpResponse> {
    let (http, rules) = (request.request(), &app.config.http);
    let notice = |notice| Some(error::error_page(http, app, assets, notice));
    let peer = client_address::peer(request.peer_addr());
    let Ok(address) = found else {
        return notice(ErrorPage::FORWARDED);
    };
    let allowed = rules.allow.is_empty() || is_in(&rules.allow, address);
    if !allowed || is_in(&rules.deny, address) {
        return notice(ErrorPage::NETWORK);
    }
    let sheltered = ConnectionState::is_encrypted(http)
        || !app.issuer.is_https()
        || peer.is_loopback()
        || is_in(&rules.trusted_proxies, peer);
    if sheltered {
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
    notice(ErrorPage::PLAIN)
}

/// Charges the request to its address.
fn too_many(
    request: &HttpRequest,
    limits: &Limits,
    app: &App,
    assets: &Assets,
) -> Option<HttpResponse> {
    let too_many = limits.charge_address(request).err()?;
    Some(too_many.respond(request, app, assets))
}

/// What is refused before any route is looked at.
fn refuse(request: &ServiceRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let http = request.request();
    let notice = |notice| Some(error::error_page(http, app, assets, notice));
    let target = http
        .uri()
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if target > URL_BYTES {
        return notice(ErrorPage::URL_TOO_LONG);
    }
    let (fields, bytes) =
        request
            .headers()
            .iter()
            .fold((0, 0), |(fields, bytes), (name, value)| {
                (fields + 1, bytes + name.as_str().len() + value.len() + 4)
            });
    if fields > HEADER_FIELDS || bytes > HEADER_BYTES {
        return notice(ErrorPage::HEADERS_TOO_LARGE);
    }
    if !is_canonical(http.uri().path()) {
        return notice(ErrorPage::NOT_FOUND);
    }
    reject_wrong_host(request, app, assets)
}

/// While this node must not change state, nothing that rests on the database is answered: not from one
/// that went back in time, not by a wrong clock, and not without an own write in the last 30 s. Keys and
/// metadata are, and the feed reports its own state. With a database that is the current one, what only
/// revokes goes on: a revocation does more good than harm.
async fn unfit(request: &HttpRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let class = Class::of(request.path())?;
    if matches!(class, Class::Metadata | Class::Feed) {
        return None;
    }
    let error = app.may_change_state().await.err()?;
    let notice = match &error {
        KeyError::Restored => ErrorPage::RESTORED,
        _ if matches!(class, Class::Revoke | Class::Logout) => return None,
        KeyError::Clock => ErrorPage::CLOCK,
        _ => ErrorPage::LEASE,
    };
    Some(match (class.is_page(), error) {
        (true, _) => error::error_page(request, app, assets, notice),
        (false, KeyError::Restored) => error::json(
            request,
            &crate::oauth::Error {
                code: Code::TemporarilyUnavailable,
                detail: Detail::new("db.restored", "waiting"),
                source: None,
            },
        ),
        (false, error) => error::json(request, &error.into()),
    })
}

/// Router and access rules see one and the same path: no escapes, no empty, dot or parameter parts.
fn is_canonical(path: &str) -> bool {
    path.starts_with('/')
        && path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b))
        && !path.contains("//")
        && !path.split('/').any(|part| part == "." || part == "..")
}

/// The issuer is a constant, never taken from `Host`. Another loopback spelling of a loopback issuer
/// is sent to the right one; everything else is 421.
fn reject_wrong_host(request: &ServiceRequest, app: &App, assets: &Assets) -> Option<HttpResponse> {
    let mut hosts = request.headers().get_all(HOST);
    // RFC 9112 §3.2: exactly one, whatever the target says.
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        let http = request.request();
        return Some(error::error_page(http, app, assets, ErrorPage::HOST));
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
    error::refused(
        request.request(),
        "421",
        Detail::new("http.bad_host", "host"),
        None,
    );
    // The one page that shows a part of the request: whoever set up the proxy needs to see it.
    let seen: String = host
        .chars()
        .filter(|c| c.is_ascii_graphic())
        .take(255)
        .collect();
    Some(
        HttpResponse::MisdirectedRequest()
            .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(format!("Error: this server answers for {authority}, and was asked for {seen}. Check the issuer setting and the proxy's Host header.\n")),
    )
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
