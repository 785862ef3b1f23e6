//! Forms of this server's pages. The same-origin check and the CSRF token are checked here and nowhere else
//! (policy §8).

use std::future::Future;
use std::pin::Pin;

use actix_web::error::InternalError;
use actix_web::web::{Data, Payload};
use actix_web::{FromRequest, HttpRequest, HttpResponse, dev};

use crate::app::App;
use crate::http::assets::Assets;
use crate::http::error::{self, ErrorPage};
use crate::http::extract;
use crate::oauth::request::params::Params;

/// The message of a form whose password cannot be hashed yet.
pub(super) const TOO_MANY_SIGN_INS: &str =
    "Too many sign-ins at the moment. Try again in a few seconds.";

/// Turns the message of an error into a sentence.
pub(super) fn sentence(error: &impl ToString) -> String {
    let message = error.to_string();
    let mut rest = message.chars();
    let first = rest.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(rest).chain(['.']).collect()
}

/// The form of a request that comes from a page of this server. The handler verifies its [`CsrfToken`] as soon as it
/// has determined to which browser or session the token must belong.
pub(in crate::http) struct CsrfForm(Params);

/// The CSRF token of a form, not verified yet.
#[must_use]
pub(in crate::http) struct CsrfToken<'a>(&'a str);

impl CsrfForm {
    /// Returns the CSRF token, empty if the form has none.
    ///
    /// # Errors
    /// [`ErrorPage::BAD_FORM`] if it is repeated.
    pub(super) fn token(&self) -> Result<CsrfToken<'_>, ErrorPage> {
        Ok(CsrfToken(self.one("csrf")?.unwrap_or_default()))
    }

    /// Returns the value of a field that may occur once.
    ///
    /// # Errors
    /// [`ErrorPage::BAD_FORM`] if it is repeated or malformed.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, ErrorPage> {
        self.0.one(name).map_err(|_| ErrorPage::BAD_FORM)
    }

    /// Returns the values of a field that may be repeated.
    ///
    /// # Errors
    /// [`ErrorPage::BAD_FORM`] if one is malformed.
    pub(super) fn many(&self, name: &str) -> Result<Vec<&str>, ErrorPage> {
        self.0.many(name).map_err(|_| ErrorPage::BAD_FORM)
    }

    /// Returns the value of a field as it was typed.
    ///
    /// # Errors
    /// [`ErrorPage::BAD_FORM`] if it is repeated.
    pub(super) fn verbatim(&self, name: &str) -> Result<&str, ErrorPage> {
        self.0.verbatim(name).map_err(|_| ErrorPage::BAD_FORM)
    }
}

impl CsrfToken<'_> {
    /// Verifies that this server issued the token for `purpose` to `subject`: the value of the browser's cookie, or
    /// the `sid` of its session.
    ///
    /// # Errors
    /// [`ErrorPage::FORGED`].
    pub(super) fn verify(self, app: &App, subject: &str, purpose: &str) -> Result<(), ErrorPage> {
        match app.secret.accepts_form(self.0, subject, purpose) {
            true => Ok(()),
            false => Err(ErrorPage::FORGED),
        }
    }
}

/// Verifies the CSRF token of parameters that another site may also have sent.
///
/// # Errors
/// [`ErrorPage::CROSS_SITE`], [`ErrorPage::FORGED`].
pub(super) fn verify_params(
    request: &HttpRequest,
    app: &App,
    params: &Params,
    subject: &str,
    purpose: &str,
) -> Result<(), ErrorPage> {
    if !extract::is_same_origin(request, app) {
        return Err(ErrorPage::CROSS_SITE);
    }
    let token = params.one("csrf").ok().flatten().unwrap_or_default();
    CsrfToken(token).verify(app, subject, purpose)
}

impl FromRequest for CsrfForm {
    type Error = actix_web::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Self::Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let (request, body) = (request.clone(), Payload::from_request(request, payload));
        Box::pin(async move {
            let reject = |response| InternalError::from_response("form", response).into();
            let (Some(app), Some(assets)) = (
                request.app_data::<Data<App>>(),
                request.app_data::<Data<Assets>>(),
            ) else {
                return Err(reject(HttpResponse::InternalServerError().finish()));
            };
            let form = read(&request, app, body.await?).await;
            form.map_err(|page| reject(error::error_page(&request, assets, page)))
        })
    }
}

async fn read(request: &HttpRequest, app: &App, body: Payload) -> Result<CsrfForm, ErrorPage> {
    let form = extract::form(request, body).await?;
    match extract::is_same_origin(request, app) {
        true => Ok(CsrfForm(form)),
        false => Err(ErrorPage::CROSS_SITE),
    }
}
