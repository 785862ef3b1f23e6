//! Extraction of the token from the `Authorization` header (RFC 6750 §2.1).

use crate::Rejected;

/// Realm of the challenges (RFC 9110 §11.5). Each service is one protection space.
#[cfg(any(feature = "actix", feature = "tower"))]
pub(crate) const REALM: &str = "api";

/// Returns the bearer token from the values of a request's `Authorization` headers
/// (RFC 6750 §2.1). Pass `None` for a value that is not a string. Use this function with web
/// frameworks that this crate has no integration for.
///
/// Credentials of another scheme are ignored. More than one header is rejected, because two
/// components could otherwise read two different callers from the same request.
///
/// # Errors
///
/// [`Rejected::Missing`] if the request has no bearer token. [`Rejected::Request`] if there is more
/// than one header, or if the header or its token cannot be read.
pub fn bearer<'a>(mut values: impl Iterator<Item = Option<&'a str>>) -> Result<&'a str, Rejected> {
    let value = values.next().ok_or(Rejected::Missing)?;
    if values.next().is_some() {
        return Err(Rejected::Request);
    }
    let value = value.ok_or(Rejected::Request)?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Rejected::Missing);
    }
    match token.trim_matches(' ') {
        "" => Err(Rejected::Request),
        token => Ok(token),
    }
}
