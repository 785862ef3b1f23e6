//! RFC 6750 §2.1: the token in the `Authorization` header.

use crate::Rejected;

/// The realm of our challenges (RFC 9110 §11.5): one protection space per service.
#[cfg(any(feature = "actix", feature = "tower"))]
pub(crate) const REALM: &str = "api";

/// The token among the values of the `Authorization` headers of a request (RFC 6750 §2.1), `None`
/// for a value that is no text. For guards of frameworks that this crate has none for.
///
/// Another scheme is no token; two headers are an attempt to let two readers see two callers.
///
/// # Errors
///
/// [`Rejected::Missing`] without a bearer token, [`Rejected::Request`] where it cannot be said which
/// one it is.
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
