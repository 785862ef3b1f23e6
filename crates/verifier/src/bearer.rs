//! RFC 6750 §2.1: the token in the `Authorization` header.

use crate::Rejected;

/// The realm of our challenges (RFC 9110 §11.5): one protection space per service.
pub(crate) const REALM: &str = "api";

/// The token among the values of `Authorization`, `None` for one that is no text. Another scheme is
/// no token; two headers are an attempt to let two readers see two callers.
pub(crate) fn bearer<'a>(
    mut values: impl Iterator<Item = Option<&'a str>>,
) -> Result<&'a str, Rejected> {
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
