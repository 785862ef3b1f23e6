//! Pages and redirects: what the browser gets.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use askama::Template;

use super::assets::Assets;
use crate::app::App;
use crate::oauth::callback::Delivery;
use crate::secret::Secret;

/// What every page shows.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Product name.
    pub product: String,
    /// Path of the stylesheet.
    pub stylesheet: String,
    /// Path of the mark.
    pub icon: String,
}

/// What the Content-Security-Policy of a page allows beyond its own origin (policy §8).
#[derive(Default)]
pub struct Allowed<'a> {
    /// `form-action`: browsers apply it to every redirect after the POST.
    pub form_action: Option<&'a str>,
    /// The nonce of the page's one script.
    pub script_nonce: Option<&'a str>,
    /// Clients may open the page as a popup and keep the reference to it.
    pub popup: bool,
}

/// Renders a page.
pub fn page(status: StatusCode, template: &impl Template, allowed: &Allowed<'_>) -> HttpResponse {
    let html = match template.render() {
        Ok(html) => html,
        Err(error) => {
            tracing::error!(event = "page.broken", %error);
            return HttpResponse::InternalServerError().finish();
        }
    };
    let script = allowed.script_nonce.map_or_else(
        || "'none'".to_owned(),
        |nonce| format!("'nonce-{nonce}' 'strict-dynamic'"),
    );
    let csp = format!(
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src {script}; form-action 'self'{}; \
         base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        allowed
            .form_action
            .map_or_else(String::new, |target| format!(" {target}")),
    );
    let mut response = HttpResponse::build(status);
    response
        .insert_header(("Content-Type", "text/html; charset=utf-8"))
        .insert_header(("Content-Security-Policy", csp))
        .insert_header(("X-Frame-Options", "DENY"))
        .insert_header(("Cache-Control", "no-store"));
    if !allowed.popup {
        response.insert_header(("Cross-Origin-Opener-Policy", "same-origin"));
    }
    response.body(html)
}

/// 303 to a place of ours or a proven callback.
pub fn see_other(to: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((LOCATION, to))
        .insert_header(("Cache-Control", "no-store"))
        .finish()
}

/// A page that posts itself (OAuth 2.0 Form Post Response Mode §4).
#[derive(Template)]
#[template(path = "form_post.html")]
struct FormPost<'a> {
    frame: &'a Frame,
    action: String,
    fields: Vec<(String, String)>,
    nonce: String,
}

/// Delivers the answer of an authorization request.
pub fn deliver(delivery: Delivery, app: &App, assets: &Assets) -> HttpResponse {
    match delivery {
        Delivery::Redirect(to) => see_other(&to),
        Delivery::Form { action, fields } => {
            let nonce = Secret::opaque(&app.entropy).expose().to_owned();
            let target = url::Url::parse(&action)
                .map_or_else(|_| String::new(), |url| url.origin().ascii_serialization());
            let allowed = Allowed {
                form_action: Some(&target),
                script_nonce: Some(&nonce),
                popup: true,
            };
            let form = FormPost {
                frame: &assets.frame,
                action,
                fields,
                nonce: nonce.clone(),
            };
            page(StatusCode::OK, &form, &allowed)
        }
    }
}
