//! Request paths that every service interprets in the same way.
//!
//! Proxies and services disagree about `//`, `..`, percent-encoding, case and much else. A path on
//! which they could disagree is rejected, not normalized. Normalizing it would add one more
//! interpretation, and only the interpretation of the service matters.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Policy: maximum length of a request target, in bytes.
const MAX_BYTES: usize = 8 * 1024;

/// An unambiguous path (RFC 3986 §3.3). It may end with a slash but has no other empty segment, no
/// dot segment, no path parameter, and percent-encodes neither a separator nor a character that
/// does not need it.
#[derive(Debug, PartialEq, Eq)]
pub struct Path<'a> {
    segments: Vec<Segment<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Segment<'a> {
    /// The segment as received.
    raw: &'a str,
    /// The decoded segment, case-folded as a case-insensitive service may compare it.
    folded: String,
}

/// Why a path is rejected. Logged as part of the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// The target is longer than that of any legitimate request.
    TooLong,
    /// The target does not begin with a slash: it has another form (RFC 9112 §3.2).
    NotAPath,
    /// A character that must be percent-encoded in a path, or `;`.
    Character,
    /// A percent-encoded octet that is malformed, not needed, or treated as a separator by some
    /// services.
    Escape,
    /// A segment that is empty or consists of dots and white space.
    Segment,
}

impl<'a> Path<'a> {
    /// Parses the path of a request target (RFC 9112 §3.2.1). Ignores the query, from the first `?`
    /// on, because only the service interprets it.
    pub fn parse(target: &'a str) -> Result<Self, PathError> {
        if target.len() > MAX_BYTES {
            return Err(PathError::TooLong);
        }
        let path = target.split('?').next().unwrap_or_default();
        let path = path.strip_prefix('/').ok_or(PathError::NotAPath)?;
        if path.is_empty() {
            return Ok(Self { segments: vec![] });
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments = path.split('/').map(Segment::parse);
        Ok(Self {
            segments: segments.collect::<Result<_, _>>()?,
        })
    }

    /// Compares the path with a prefix.
    pub fn matches(&self, prefix: &Prefix) -> PrefixMatch {
        if self.segments.len() < prefix.segments.len() {
            return PrefixMatch::None;
        }
        let pairs = || self.segments.iter().zip(&prefix.segments);
        if pairs().all(|(segment, name)| segment.raw == name) {
            PrefixMatch::Exact
        } else if pairs().all(|(segment, name)| segment.raw == name || segment.may_match(name)) {
            PrefixMatch::Possible
        } else {
            PrefixMatch::None
        }
    }
}

/// Whether a path begins with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixMatch {
    /// The segments are equal, byte for byte.
    Exact,
    /// A service that ignores case, extensions or the like might match the path to the prefix.
    Possible,
    /// No service matches the path to the prefix.
    None,
}

impl<'a> Segment<'a> {
    fn parse(raw: &'a str) -> Result<Self, PathError> {
        let text = decode(raw)?;
        if text.chars().any(is_ignorable) {
            return Err(PathError::Escape);
        }
        let folded = fold(&text);
        // Separators that were written in a wide form.
        if folded.contains(['/', '\\', '%', ';']) {
            return Err(PathError::Escape);
        }
        let rest = folded.trim_matches(|c: char| c == '.' || c.is_whitespace());
        if rest.is_empty() {
            return Err(PathError::Segment);
        }
        Ok(Self { raw, folded })
    }

    /// Returns whether a service might take the segment for `name`, as with `ADMIN`, `admin.json`
    /// or `admin%20` for `admin`.
    fn may_match(&self, name: &str) -> bool {
        let rest = self.folded.trim_start().strip_prefix(&fold(name));
        rest.is_some_and(|rest| !rest.starts_with(is_name_character))
    }
}

/// Decodes a segment (RFC 3986 §2.1) strictly.
///
/// An encoded octet is `%` and two hexadecimal digits. The decoded octets must be valid UTF-8.
/// Characters that need no encoding (§6.2.2.2), separators and control characters must not be
/// encoded.
fn decode(raw: &str) -> Result<String, PathError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => bytes.push(decode_octet(rest.next(), rest.next())?),
            byte if is_unreserved(byte) || b"!$&'()*+,=:@".contains(&byte) => bytes.push(byte),
            _ => return Err(PathError::Character),
        }
    }
    String::from_utf8(bytes).map_err(|_| PathError::Escape)
}

fn decode_octet(high: Option<u8>, low: Option<u8>) -> Result<u8, PathError> {
    let digit = |byte: Option<u8>| char::from(byte.unwrap_or_default()).to_digit(16);
    let (Some(high), Some(low)) = (digit(high), digit(low)) else {
        return Err(PathError::Escape);
    };
    let byte = u8::try_from(high * 16 + low).map_err(|_| PathError::Escape)?;
    if is_unreserved(byte) || byte.is_ascii_control() || b"/\\%;".contains(&byte) {
        return Err(PathError::Escape);
    }
    Ok(byte)
}

/// Returns whether the byte is an unreserved character (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Returns whether the character continues a name, so that `/admins` and `/admin-old` cannot be
/// taken for `/admin`.
fn is_name_character(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '~')
}

/// Returns whether some text comparisons ignore the character.
fn is_ignorable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Folds what a service may fold when it compares names: compatibility forms such as `ⓐ`, `𝐚` and wide letters (NFKC),
/// accents, and case. The way through upper case makes `ſ` (U+017F) equal to `s`.
fn fold(text: &str) -> String {
    // Decomposed, so that an accent is a character of its own, whether it was sent like that or not.
    let plain = text.nfkd().filter(|c| !is_combining_mark(*c));
    let upper = plain.flat_map(char::to_uppercase);
    let lower: String = upper.flat_map(char::to_lowercase).collect();
    // Case mapping can compose what has to be decomposed again.
    lower.nfkd().filter(|c| !is_combining_mark(*c)).collect()
}

/// The first segments of a path. `/orders` matches `/orders`, `/orders/` and every path below it,
/// but not `/orders2`. `/` matches every path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    segments: Vec<String>,
}

impl Prefix {
    /// Parses the value of a setting. The error is a message for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = |why: &str| Err(format!("invalid path prefix `{text}`: {why}"));
        let Some(path) = text.strip_prefix('/') else {
            return invalid("it must begin with a slash");
        };
        if path.is_empty() {
            return Ok(Self { segments: vec![] });
        }
        if path.ends_with('/') {
            return invalid("remove the trailing slash; a prefix matches whole segments");
        }
        if !path.bytes().all(|byte| byte == b'/' || is_unreserved(byte)) {
            return invalid("only letters, digits and `-._~` are allowed in its segments");
        }
        if Path::parse(text).is_err() {
            return invalid("empty segments and dot segments are not allowed");
        }
        Ok(Self {
            segments: path.split('/').map(str::to_owned).collect(),
        })
    }

    /// Returns the number of segments. The longest matching prefix takes precedence.
    pub fn len(&self) -> usize {
        self.segments.len()
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", self.segments.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn match_prefix(target: &str, prefix: &str) -> PrefixMatch {
        Path::parse(target)
            .unwrap()
            .matches(&Prefix::parse(prefix).unwrap())
    }

    #[test]
    fn prefix_matches_whole_segments() {
        for (target, prefix, expected) in [
            ("/orders", "/orders", PrefixMatch::Exact),
            ("/orders/", "/orders", PrefixMatch::Exact),
            ("/orders/7/lines?all=1", "/orders", PrefixMatch::Exact),
            ("/orders?/../admin", "/orders", PrefixMatch::Exact),
            ("/orders2", "/orders", PrefixMatch::None),
            ("/orders-old", "/orders", PrefixMatch::None),
            ("/order", "/orders", PrefixMatch::None),
            ("/", "/orders", PrefixMatch::None),
            ("/", "/", PrefixMatch::Exact),
            ("/?x", "/", PrefixMatch::Exact),
            ("/anything/at/all", "/", PrefixMatch::Exact),
            ("/a/b", "/a/b/c", PrefixMatch::None),
            ("/v1.2/x", "/v1.2", PrefixMatch::Exact),
            ("/caf%C3%A9/a%20b/x@y:z,w=1", "/", PrefixMatch::Exact),
        ] {
            assert_eq!(match_prefix(target, prefix), expected, "{target} {prefix}");
        }
    }

    #[test]
    fn near_prefix_spelling_is_a_possible_match() {
        for target in [
            "/Admin",
            "/ADMIN/users",
            "/admin.json",
            "/admin.",
            "/admin%20",
            "/%20admin",
            "/admin:x",
            "/admin,1",
            "/admin%3Fx",
            "/admin%2Cx",
            "/adm%C4%B1n",
            "/adm%C4%B0n",
            "/%EF%BD%81dmin",
            "/admin%CC%81",
            // Compatibility forms and accents: ⓐ, 𝐚, å in one character and in two.
            "/%E2%93%90dmin/x",
            "/%F0%9D%90%9Admin/x",
            "/%C3%A5dmin",
            "/a%CC%8Admin",
        ] {
            // Upper-casing turns the dotless i (U+0131) into `I`; the dotted I (U+0130) is an `I` with an accent.
            let expected = PrefixMatch::Possible;
            assert_eq!(match_prefix(target, "/admin"), expected, "{target}");
        }
        assert_eq!(
            match_prefix("/%E2%84%AAeys/x", "/keys"),
            PrefixMatch::Possible
        );
        assert_eq!(match_prefix("/u%C5%BFers", "/users"), PrefixMatch::Possible);
        assert_eq!(
            match_prefix("/api/USERS", "/api/users"),
            PrefixMatch::Possible
        );
        assert_eq!(match_prefix("/orders", "/ORDERS"), PrefixMatch::Possible);
        assert_eq!(match_prefix("/caf%C3%A9", "/cafe"), PrefixMatch::Possible);
    }

    #[test]
    fn ambiguous_paths_are_rejected() {
        for (target, why) in [
            ("", PathError::NotAPath),
            ("*", PathError::NotAPath),
            ("orders", PathError::NotAPath),
            ("http://api.example/orders", PathError::NotAPath),
            ("\\orders", PathError::NotAPath),
            ("//orders", PathError::Segment),
            ("/orders//7", PathError::Segment),
            ("/orders//", PathError::Segment),
            ("//", PathError::Segment),
            ("/./orders", PathError::Segment),
            ("/public/../orders", PathError::Segment),
            ("/public/..", PathError::Segment),
            ("/public/.../orders", PathError::Segment),
            ("/%20/orders", PathError::Segment),
            ("/public/%2e%2e/orders", PathError::Escape),
            ("/public/.%2E/orders", PathError::Escape),
            ("/%6frders", PathError::Escape),
            ("/public%2forders", PathError::Escape),
            ("/public%2F..%2Forders", PathError::Escape),
            ("/public%5c..%5corders", PathError::Escape),
            ("/public\\..\\orders", PathError::Character),
            ("/%252e%252e/orders", PathError::Escape),
            ("/public%00/orders", PathError::Escape),
            ("/public%0a", PathError::Escape),
            ("/public%7f", PathError::Escape),
            ("/public\u{0}", PathError::Character),
            ("/public;x=1/orders", PathError::Character),
            ("/public%3b/orders", PathError::Escape),
            ("/public/..;/orders", PathError::Character),
            ("/public#/orders", PathError::Character),
            ("/public /orders", PathError::Character),
            ("/caf\u{e9}", PathError::Character),
            ("/public<", PathError::Character),
            ("/%", PathError::Escape),
            ("/%4", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%u002e", PathError::Escape),
            // Not UTF-8: overlong forms, an incomplete sequence, a surrogate.
            ("/%c0%ae%c0%ae/orders", PathError::Escape),
            ("/%c0%af", PathError::Escape),
            ("/%e9", PathError::Escape),
            ("/%ed%a0%80", PathError::Escape),
            // Wide forms of `/`, `.` and `;`.
            ("/public%EF%BC%8Forders", PathError::Escape),
            ("/%EF%BC%8E%EF%BC%8E/orders", PathError::Segment),
            ("/public%EF%BC%9Bx", PathError::Escape),
            // Ignored by some comparisons: zero-width space, soft hyphen, byte-order mark.
            ("/or%E2%80%8Bders", PathError::Escape),
            ("/or%C2%ADders", PathError::Escape),
            ("/%EF%BB%BForders", PathError::Escape),
        ] {
            assert_eq!(Path::parse(target), Err(why), "{target:?}");
        }
        let long = format!("/{}", "a".repeat(MAX_BYTES));
        assert_eq!(Path::parse(&long), Err(PathError::TooLong));
        assert!(Path::parse(&long[..MAX_BYTES]).is_ok());
    }

    #[test]
    fn prefix_with_special_characters_is_rejected() {
        for good in ["/", "/orders", "/api/v1.2/a_b~c-d"] {
            assert_eq!(Prefix::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "", "orders", "/orders/", "//", "/a//b", "/a/../b", "/.", "/a%20b", "/a*", "/a;b", "/é",
        ] {
            assert!(Prefix::parse(bad).is_err(), "{bad}");
        }
    }
}
