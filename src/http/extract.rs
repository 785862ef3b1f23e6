//! Reads queries, forms, cookies and credentials of requests into types.

use actix_web::HttpRequest;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, HeaderMap};
use actix_web::web::Payload;

use crate::app::App;
use crate::config::limits::{BODY_BYTES, BODY_TIME, DEVICE_KNOWN};
use crate::http::error::{self, ErrorPage};
use crate::oauth::Detail;
use crate::oauth::request::params::{Params, TooMany};
use crate::secret::{Hash, Secret};

/// Why the form of a request cannot be read.
#[derive(Debug)]
pub enum FormError {
    /// It exceeds a limit of HTTP requests.
    ErrorPage(ErrorPage),
    /// The body is not a form.
    NotAForm,
}

impl From<FormError> for ErrorPage {
    fn from(error: FormError) -> Self {
        match error {
            FormError::ErrorPage(page) => page,
            FormError::NotAForm => Self::BAD_FORM,
        }
    }
}

impl From<TooMany> for FormError {
    fn from(_: TooMany) -> Self {
        Self::ErrorPage(ErrorPage::TOO_MANY_FORM_FIELDS)
    }
}

/// Reads the query of a request.
///
/// # Errors
/// [`TooMany`] fields.
pub fn query(request: &HttpRequest) -> Result<Params, TooMany> {
    Params::parse(request.query_string().as_bytes())
}

/// Reads the form in the body of a request: `application/x-www-form-urlencoded` in UTF-8, at most 16 KiB,
/// not compressed.
///
/// # Errors
/// [`FormError`]; reading stops at the limit.
pub async fn form(request: &HttpRequest, body: Payload) -> Result<Params, FormError> {
    Ok(form_and_text(request, body).await?.0)
}

/// Does the same as [`form`], and returns the text of the body as well.
///
/// # Errors
/// [`FormError`].
pub async fn form_and_text(
    request: &HttpRequest,
    body: Payload,
) -> Result<(Params, String), FormError> {
    let headers = request.headers();
    let encoded = headers
        .get(CONTENT_ENCODING)
        .is_some_and(|value| value.as_bytes() != b"identity");
    if encoded {
        return Err(FormError::ErrorPage(ErrorPage::ENCODED_BODY));
    }
    let bytes = match tokio::time::timeout(BODY_TIME, body.to_bytes_limited(BODY_BYTES)).await {
        Err(_) => return Err(FormError::ErrorPage(ErrorPage::TOO_SLOW)),
        Ok(Err(_)) => return Err(FormError::ErrorPage(ErrorPage::BODY_TOO_LARGE)),
        Ok(Ok(Err(_))) => return Err(FormError::NotAForm),
        Ok(Ok(Ok(bytes))) => bytes,
    };
    if !is_form(headers) {
        return Err(FormError::NotAForm);
    }
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| FormError::NotAForm)?;
    Ok((Params::parse(&bytes)?, text))
}

fn is_form(headers: &HeaderMap) -> bool {
    let Some(kind) = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let mut parts = kind.split(';').map(str::trim);
    let form = parts
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    form && parts.all(|parameter| {
        parameter.split_once('=').is_none_or(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || is_ascii_compatible(value.trim_matches('"'))
        })
    })
}

/// Returns whether ASCII text has the same bytes in a charset. The media type defines no such parameter (URL Standard
/// §5), and RFC 6749 App. B fixes UTF-8, but common libraries send one. Its value is ignored, unless the body cannot
/// be read as ASCII.
fn is_ascii_compatible(charset: &str) -> bool {
    let bytes = charset.as_bytes();
    let starts_with = |prefix: &str| {
        bytes
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    !["utf-16", "utf16", "utf-32", "utf32", "utf-7", "ucs-"]
        .into_iter()
        .any(starts_with)
}

/// Returns all values of the `Authorization` header.
pub fn authorization(request: &HttpRequest) -> Vec<&[u8]> {
    request
        .headers()
        .get_all(AUTHORIZATION)
        .map(|value| value.as_bytes())
        .collect()
}

/// Length of a cookie's value: 32 random bytes in base64url.
const COOKIE_CHARS: usize = 43;

/// Returns the values of all cookies of a name, as the bytes that were sent (RFC 6265 §5.4). Names are not
/// decoded: browsers enforce the prefix `__Host-` on the name as sent, so another host of the domain may set
/// `%5F%5FHost-sid`. Cookies that are malformed or belong to other programs are ignored.
fn cookies_named<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(COOKIE)
        .flat_map(|header| header.as_bytes().split(|byte| *byte == b';'))
        .filter_map(move |pair| {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (sent, value) = (pair.get(..equals)?, pair.get(equals + 1..)?);
            (sent.trim_ascii() == name.as_bytes()).then(|| value.trim_ascii())
        })
}

/// The cookies of this server (policy §7).
#[derive(Clone, Copy, Debug)]
pub enum CookieKind {
    /// The browser's session.
    Session,
    /// The browser that open authorizations are bound to.
    Interaction,
    /// A browser in which a user signed in. Only throttling uses it; it authenticates no one.
    Device,
}

impl CookieKind {
    /// Returns the name with the prefix `__Host-` over https. A loopback issuer without TLS has neither prefix nor
    /// `Secure`, because browsers would reject the cookie. Its name contains the product and the port, because programs
    /// on all ports of a host share their cookies (RFC 6265 §8.5).
    fn name(self, app: &App) -> String {
        let bare = match self {
            Self::Session => "sid",
            Self::Interaction => "ix",
            Self::Device => "dev",
        };
        match app.issuer.is_https() {
            true => format!("__Host-{bare}"),
            false => format!("portcullis-{}-{bare}", app.issuer.port()),
        }
    }

    /// Returns the cookie's value, if it was sent exactly once and has the form that the server sets. A second
    /// cookie of the same name was set by another host of the domain.
    pub fn read(self, request: &HttpRequest, app: &App) -> Option<Secret> {
        let name = self.name(app);
        let mut values = cookies_named(request.headers(), &name);
        let (value, None) = (values.next()?, values.next()) else {
            return None;
        };
        let value = std::str::from_utf8(value).ok()?;
        (value.len() == COOKIE_CHARS).then(|| Secret::from_text(value))
    }

    /// Returns whether a cookie of the name was sent, well-formed or not.
    pub fn is_sent(self, request: &HttpRequest, app: &App) -> bool {
        let name = self.name(app);
        cookies_named(request.headers(), &name).next().is_some()
    }

    /// Returns whether any cookie of this server was sent twice.
    pub fn is_any_repeated(request: &HttpRequest, app: &App) -> bool {
        [Self::Session, Self::Interaction, Self::Device]
            .into_iter()
            .any(|kind| {
                cookies_named(request.headers(), &kind.name(app))
                    .nth(1)
                    .is_some()
            })
    }

    /// Returns the cookie that stores `value`.
    pub fn keep(self, app: &App, value: &Secret) -> Cookie<'static> {
        let mut cookie = Cookie::build(self.name(app), value.expose().to_owned())
            .path("/")
            .http_only(true)
            .same_site(SameSite::Lax)
            .secure(app.issuer.is_https());
        let max_age = match self {
            // Session cookies, which the browser keeps until it is closed. A cookie that expired together with its
            // authorization could not explain to the user that the sign-in took too long.
            Self::Session | Self::Interaction => None,
            Self::Device => Some(DEVICE_KNOWN),
        };
        if let Some(secs) = max_age.and_then(|max_age| i64::try_from(max_age.as_secs()).ok()) {
            cookie = cookie.max_age(actix_web::cookie::time::Duration::seconds(secs));
        }
        cookie.finish()
    }

    /// Returns the cookie that removes the stored one.
    pub fn forget(self, app: &App) -> Cookie<'static> {
        let mut cookie = self.keep(app, &Secret::from_text(""));
        cookie.make_removal();
        cookie
    }
}

/// Logs a session cookie that belongs to no active session: it was guessed or altered, or its session was ended
/// elsewhere.
pub fn log_unknown_session(request: &HttpRequest, app: &App) {
    if CookieKind::Session.is_sent(request, app) {
        error::log(request, Detail::new("session.invalid", "unknown"), None);
    }
}

/// The browser that an authorization is bound to, by its cookie.
pub struct Browser {
    /// The cookie's value.
    pub secret: Secret,
    /// Whether the value was created for this request, because the browser sent none.
    pub is_new: bool,
}

impl Browser {
    /// Reads the cookie, or creates its value.
    pub fn of(request: &HttpRequest, app: &App) -> Self {
        match CookieKind::Interaction.read(request, app) {
            Some(secret) => Self {
                secret,
                is_new: false,
            },
            None => Self {
                secret: Secret::opaque(&app.entropy),
                is_new: true,
            },
        }
    }

    /// Returns the hash that the database stores.
    pub fn hash(&self) -> Hash {
        self.secret.hash()
    }
}

/// Returns whether a form comes from a page of this server, by `Sec-Fetch-Site` and `Origin` (policy §8). The CSRF
/// token is verified in addition.
pub fn is_same_origin(request: &HttpRequest, app: &App) -> bool {
    let text = |name: &str| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap_or("?"))
    };
    let site = matches!(text("Sec-Fetch-Site"), None | Some("same-origin"));
    let origin = match text("Origin") {
        None | Some("null") => true,
        Some(origin) => app.issuer.has_origin(origin),
    };
    site && origin
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn named(header: &[u8], name: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_bytes(header).unwrap());
        cookies_named(&headers, name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    #[test]
    fn cookie_names_are_compared_as_sent() {
        for other in [
            "%5F%5FHost-sid",
            "__Host%2Dsid",
            "__Host-s%69d",
            "__host-sid",
            "\"__Host-sid\"",
        ] {
            let header = format!("{other}=a; __Host-sid=b");
            assert_eq!(named(header.as_bytes(), "__Host-sid"), ["b"], "{other}");
        }
    }

    #[test]
    fn malformed_cookies_do_not_hide_others() {
        let headers: [&[u8]; 5] = [
            b"junk=\xe9; sid=a",
            b"sid=a; junk=\xe9",
            b"; ;=;sid = a ;nameonly",
            b"x=\"a;sid=a",
            b"sid=a\t;sidx=b",
        ];
        for header in headers {
            assert_eq!(named(header, "sid"), ["a"], "{header:?}");
        }
        assert_eq!(named(b"sid=a; sid=b", "sid"), ["a", "b"]);
    }
}
