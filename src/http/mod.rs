//! Endpoints and pages. This file contains every route.

mod admin;
mod api;
mod assets;
mod authorization_context;
mod error;
mod extract;
mod feed;
mod management;
mod navigation;
mod oauth;
mod response;
mod server;
mod ui;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::web::{self, ServiceConfig};
use actix_web::{guard, middleware};

pub use assets::{Assets, Frame};
pub use response::{FormTarget, PagePolicy, page, see_other};
pub use server::listeners::{BindError, Listeners};
pub use server::rate_limit::Limits;
pub use server::tls::{Validity, inspect as inspect_certificate};

use management::{health, metrics};
use oauth::{authorize, discovery, introspect, revoke, token, userinfo};
use server::cors;
use ui::{account, assets as asset, consent, login, logout, setup};

/// Adds the routes of the public listener: protocol and pages.
pub fn public(config: &mut ServiceConfig) {
    config
        .service(only(
            &["GET", "POST"],
            web::resource("/oauth2/authorize")
                .route(web::get().to(authorize::get))
                .route(web::head().to(authorize::head))
                .route(web::post().to(authorize::post)),
        ))
        .service(only(
            &["POST"],
            web::resource("/oauth2/token")
                .route(web::post().to(token::post))
                .route(web::method(Method::OPTIONS).to(cors::preflight)),
        ))
        .service(only(
            &["GET"],
            web::resource(["/oauth2/jwks", "/.well-known/jwks.json"])
                .route(web::get().to(discovery::jwks))
                .route(web::head().to(discovery::jwks))
                .route(web::method(Method::OPTIONS).to(cors::preflight)),
        ))
        .service(only(
            &["GET"],
            web::resource([
                "/.well-known/openid-configuration",
                "/.well-known/oauth-authorization-server",
            ])
            .route(web::get().to(discovery::metadata))
            .route(web::head().to(discovery::metadata))
            .route(web::method(Method::OPTIONS).to(cors::preflight)),
        ))
        .service(only(
            &["POST"],
            web::resource("/oauth2/revoke")
                .route(web::post().to(revoke::post))
                .route(web::method(Method::OPTIONS).to(cors::preflight)),
        ))
        .service(only(
            &["POST"],
            web::resource("/oauth2/introspect").route(web::post().to(introspect::post)),
        ))
        .service(only(
            &["GET", "POST"],
            web::resource("/oauth2/userinfo")
                .route(web::get().to(userinfo::get))
                .route(web::post().to(userinfo::post))
                .route(web::method(Method::OPTIONS).to(cors::preflight)),
        ))
        .service(pages(
            &["GET", "POST"],
            web::resource("/oauth2/end_session")
                .route(web::get().to(logout::get))
                .route(web::post().to(logout::post)),
        ))
        .service(only(
            &["GET"],
            web::resource("/revocations/jwks")
                .route(web::get().to(feed::jwks))
                .route(web::head().to(feed::jwks))
                .route(web::method(Method::OPTIONS).to(cors::preflight)),
        ))
        .service(without_timeout(
            &["GET"],
            web::resource("/revocations").route(web::get().to(feed::get)),
        ))
        .service(without_timeout(
            &["GET"],
            web::resource("/revocations/stream").route(web::get().to(feed::stream)),
        ))
        .service(only(
            &["POST"],
            web::resource("/revocations/ack").route(web::post().to(feed::ack)),
        ))
        .service(pages(
            &["GET", "POST"],
            web::resource("/login")
                .route(web::get().to(login::get))
                .route(web::post().to(login::post)),
        ))
        .service(pages(
            &["GET", "POST"],
            web::resource("/consent")
                .route(web::get().to(consent::get))
                .route(web::post().to(consent::post)),
        ))
        .service(pages(
            &["GET", "POST"],
            web::resource("/setup")
                .route(web::get().to(setup::get))
                .route(web::post().to(setup::post)),
        ))
        .service(pages(
            &["GET", "POST"],
            web::resource("/account")
                .route(web::get().to(account::get))
                .route(web::post().to(account::post)),
        ))
        .service(only(
            &["GET"],
            web::resource("/").route(web::get().to(account::home)),
        ))
        .service(only(
            &["GET"],
            web::resource("/assets/{name}")
                .route(web::get().to(asset::get))
                .route(web::head().to(asset::get)),
        ))
        .default_service(web::to(error::not_found));
}

/// Adds the routes of the management listener: health, metrics and version.
pub fn management(config: &mut ServiceConfig) {
    config
        .service(
            web::resource(["/livez", "/healthz"]).route(
                web::route()
                    .guard(guard::Any(guard::Get()).or(guard::Head()))
                    .to(health::live),
            ),
        )
        .service(
            web::resource("/readyz").route(
                web::route()
                    .guard(guard::Any(guard::Get()).or(guard::Head()))
                    .to(health::ready),
            ),
        )
        .service(
            web::resource("/startupz").route(
                web::route()
                    .guard(guard::Any(guard::Get()).or(guard::Head()))
                    .to(health::live),
            ),
        )
        .service(web::resource("/metrics").route(web::get().to(metrics::get)))
        .service(web::resource("/version").route(web::get().to(health::version)))
        // Reserved for the admin API; always 403 or 404 until it exists.
        .service(web::scope("/api").wrap(middleware::from_fn(admin::guard_network)));
}

/// Answers other methods with 405 and `Allow`, and applies the request timeout.
fn only(
    methods: &'static [&'static str],
    resource: actix_web::Resource,
) -> actix_web::Resource<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    without_timeout(methods, resource)
        .wrap(middleware::from_fn(server::middleware::request_timeout))
}

/// Does the same as [`only`] for pages, which only a navigation may open.
fn pages(
    methods: &'static [&'static str],
    resource: actix_web::Resource,
) -> actix_web::Resource<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    only(methods, resource).wrap(middleware::from_fn(navigation::documents_only))
}

/// Does the same as [`only`] without a timeout, for long polls and event streams.
fn without_timeout(
    methods: &'static [&'static str],
    resource: actix_web::Resource,
) -> actix_web::Resource {
    resource.default_service(web::to(move |request: actix_web::HttpRequest| async move {
        error::method_not_allowed(&request, methods)
    }))
}
