//! The path of a request, in a spelling that every service reads in the same way.
//!
//! Proxies and services disagree about `//`, `..`, escapes, case and much else. A path on which
//! they might disagree is refused instead of being repaired: a repaired path is one more reading of
//! it, and the one that counts is the service's.

/// Policy: an URL has 8 KiB at most.
const MAX_BYTES: usize = 8 * 1024;

/// A path that has one reading (RFC 3986 §3.3): no empty segment but a slash at the end, no dot
/// segment, nothing escaped that need not be or that is a separator, no path parameter.
#[derive(Debug, PartialEq, Eq)]
pub struct Path<'a> {
    segments: Vec<Segment<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Segment<'a> {
    /// As it came.
    raw: &'a str,
    /// As a service may compare it that does not care about case.
    folded: String,
}

/// Why a path is refused, for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// Longer than any honest one.
    TooLong,
    /// It does not begin with a slash: another form of the request target (RFC 9112 §3.2).
    NotAPath,
    /// A character that does not belong there unescaped, or `;`.
    Character,
    /// An escape that is broken or not needed, or of something that services treat as a separator.
    Escape,
    /// An empty segment, or one of dots and blanks.
    Segment,
}

impl<'a> Path<'a> {
    /// The path of a request target (RFC 9112 §3.2.1); what follows the first `?` is the service's.
    pub fn parse(target: &'a str) -> Result<Self, Unclear> {
        if target.len() > MAX_BYTES {
            return Err(Unclear::TooLong);
        }
        let path = target.split('?').next().unwrap_or_default();
        let path = path.strip_prefix('/').ok_or(Unclear::NotAPath)?;
        if path.is_empty() {
            return Ok(Self { segments: vec![] });
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments = path.split('/').map(Segment::parse);
        Ok(Self {
            segments: segments.collect::<Result<_, _>>()?,
        })
    }

    /// How this path stands to a prefix.
    pub fn below(&self, prefix: &Prefix) -> Below {
        if self.segments.len() < prefix.segments.len() {
            return Below::No;
        }
        let pairs = || self.segments.iter().zip(&prefix.segments);
        if pairs().all(|(segment, word)| segment.raw == word) {
            Below::Yes
        } else if pairs().all(|(segment, word)| segment.raw == word || segment.may_be(word)) {
            Below::Perhaps
        } else {
            Below::No
        }
    }
}

/// Whether a path lies below a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// Byte for byte.
    Yes,
    /// A service might say so that does not care about case, extensions or what is like them.
    Perhaps,
    /// Whoever reads it.
    No,
}

impl<'a> Segment<'a> {
    fn parse(raw: &'a str) -> Result<Self, Unclear> {
        let text = unescaped(raw)?;
        if text.chars().any(is_invisible) {
            return Err(Unclear::Escape);
        }
        let folded = folded(&text);
        // What only looked like another character before.
        if folded.contains(['/', '\\', '%', ';']) {
            return Err(Unclear::Escape);
        }
        let rest = folded.trim_matches(|c: char| c == '.' || c.is_whitespace());
        if rest.is_empty() {
            return Err(Unclear::Segment);
        }
        Ok(Self { raw, folded })
    }

    /// Whether a service might take this for `word`: `/ADMIN`, `/admin.json`, `/admin%20`.
    fn may_be(&self, word: &str) -> bool {
        let rest = self.folded.trim_start().strip_prefix(&folded(word));
        rest.is_some_and(|rest| !rest.starts_with(is_ordinary))
    }
}

/// RFC 3986 §2.1, strictly: `%` and two hexadecimal digits, of bytes that make UTF-8, and never of
/// what needs no escape (§6.2.2.2) or must not be hidden in one.
fn unescaped(raw: &str) -> Result<String, Unclear> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => bytes.push(escaped(rest.next(), rest.next())?),
            byte if is_unreserved(byte) || b"!$&'()*+,=:@".contains(&byte) => bytes.push(byte),
            _ => return Err(Unclear::Character),
        }
    }
    String::from_utf8(bytes).map_err(|_| Unclear::Escape)
}

fn escaped(high: Option<u8>, low: Option<u8>) -> Result<u8, Unclear> {
    let digit = |byte: Option<u8>| char::from(byte.unwrap_or_default()).to_digit(16);
    let (Some(high), Some(low)) = (digit(high), digit(low)) else {
        return Err(Unclear::Escape);
    };
    let byte = u8::try_from(high * 16 + low).map_err(|_| Unclear::Escape)?;
    if is_unreserved(byte) || byte.is_ascii_control() || b"/\\%;".contains(&byte) {
        return Err(Unclear::Escape);
    }
    Ok(byte)
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What can stand in a name, so that `/admins` and `/admin-old` are not `/admin`.
fn is_ordinary(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '~')
}

/// What some comparisons of text pass over.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// By upper case to lower case, as Unicode has it: so the long s is an s. Wide forms are their
/// narrow ones.
fn folded(text: &str) -> String {
    let narrow = text.chars().map(|c| match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        c => c,
    });
    let upper = narrow.flat_map(char::to_uppercase);
    upper.flat_map(char::to_lowercase).collect()
}

/// The beginning of a path, in whole segments: `/orders` stands for `/orders`, `/orders/` and all
/// below, not for `/orders2`. `/` stands for everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    segments: Vec<String>,
}

impl Prefix {
    /// From a setting.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no prefix of a path: {why}"));
        let Some(path) = text.strip_prefix('/') else {
            return wrong("it begins with a slash");
        };
        if path.is_empty() {
            return Ok(Self { segments: vec![] });
        }
        if path.ends_with('/') {
            return wrong("write it without the slash at the end; it stands for whole segments");
        }
        if !path.bytes().all(|byte| byte == b'/' || is_unreserved(byte)) {
            return wrong("it has letters, digits and `-._~` only");
        }
        if Path::parse(text).is_err() {
            return wrong("it has no empty segments and none of dots");
        }
        Ok(Self {
            segments: path.split('/').map(str::to_owned).collect(),
        })
    }

    /// How many segments it has: the longest prefix counts.
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

    fn below(target: &str, prefix: &str) -> Below {
        Path::parse(target)
            .unwrap()
            .below(&Prefix::parse(prefix).unwrap())
    }

    #[test]
    fn a_prefix_stands_for_whole_segments() {
        for (target, prefix, expected) in [
            ("/orders", "/orders", Below::Yes),
            ("/orders/", "/orders", Below::Yes),
            ("/orders/7/lines?all=1", "/orders", Below::Yes),
            ("/orders?/../admin", "/orders", Below::Yes),
            ("/orders2", "/orders", Below::No),
            ("/orders-old", "/orders", Below::No),
            ("/order", "/orders", Below::No),
            ("/", "/orders", Below::No),
            ("/", "/", Below::Yes),
            ("/?x", "/", Below::Yes),
            ("/anything/at/all", "/", Below::Yes),
            ("/a/b", "/a/b/c", Below::No),
            ("/v1.2/x", "/v1.2", Below::Yes),
            ("/caf%C3%A9/a%20b/x@y:z,w=1", "/", Below::Yes),
        ] {
            assert_eq!(below(target, prefix), expected, "{target} {prefix}");
        }
    }

    #[test]
    fn what_some_service_would_take_for_a_prefix_is_told() {
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
        ] {
            // The dotless and the dotted i are no i to everybody.
            let expected = match target {
                "/adm%C4%B0n" => Below::No,
                _ => Below::Perhaps,
            };
            assert_eq!(below(target, "/admin"), expected, "{target}");
        }
        assert_eq!(below("/%E2%84%AAeys/x", "/keys"), Below::Perhaps);
        assert_eq!(below("/u%C5%BFers", "/users"), Below::Perhaps);
        assert_eq!(below("/api/USERS", "/api/users"), Below::Perhaps);
        assert_eq!(below("/orders", "/ORDERS"), Below::Perhaps);
        assert_eq!(below("/caf%C3%A9", "/cafe"), Below::No);
    }

    #[test]
    fn a_path_with_two_readings_is_refused() {
        for (target, why) in [
            ("", Unclear::NotAPath),
            ("*", Unclear::NotAPath),
            ("orders", Unclear::NotAPath),
            ("http://api.example/orders", Unclear::NotAPath),
            ("\\orders", Unclear::NotAPath),
            ("//orders", Unclear::Segment),
            ("/orders//7", Unclear::Segment),
            ("/orders//", Unclear::Segment),
            ("//", Unclear::Segment),
            ("/./orders", Unclear::Segment),
            ("/public/../orders", Unclear::Segment),
            ("/public/..", Unclear::Segment),
            ("/public/.../orders", Unclear::Segment),
            ("/%20/orders", Unclear::Segment),
            ("/public/%2e%2e/orders", Unclear::Escape),
            ("/public/.%2E/orders", Unclear::Escape),
            ("/%6frders", Unclear::Escape),
            ("/public%2forders", Unclear::Escape),
            ("/public%2F..%2Forders", Unclear::Escape),
            ("/public%5c..%5corders", Unclear::Escape),
            ("/public\\..\\orders", Unclear::Character),
            ("/%252e%252e/orders", Unclear::Escape),
            ("/public%00/orders", Unclear::Escape),
            ("/public%0a", Unclear::Escape),
            ("/public%7f", Unclear::Escape),
            ("/public\u{0}", Unclear::Character),
            ("/public;x=1/orders", Unclear::Character),
            ("/public%3b/orders", Unclear::Escape),
            ("/public/..;/orders", Unclear::Character),
            ("/public#/orders", Unclear::Character),
            ("/public /orders", Unclear::Character),
            ("/caf\u{e9}", Unclear::Character),
            ("/public<", Unclear::Character),
            ("/%", Unclear::Escape),
            ("/%4", Unclear::Escape),
            ("/%zz", Unclear::Escape),
            ("/%u002e", Unclear::Escape),
            // Not UTF-8: overlong, a lone byte, a surrogate.
            ("/%c0%ae%c0%ae/orders", Unclear::Escape),
            ("/%c0%af", Unclear::Escape),
            ("/%e9", Unclear::Escape),
            ("/%ed%a0%80", Unclear::Escape),
            // Wide forms of `/`, `.` and `;`.
            ("/public%EF%BC%8Forders", Unclear::Escape),
            ("/%EF%BC%8E%EF%BC%8E/orders", Unclear::Segment),
            ("/public%EF%BC%9Bx", Unclear::Escape),
            // Passed over by some: zero-width space, soft hyphen, byte-order mark.
            ("/or%E2%80%8Bders", Unclear::Escape),
            ("/or%C2%ADders", Unclear::Escape),
            ("/%EF%BB%BForders", Unclear::Escape),
        ] {
            assert_eq!(Path::parse(target), Err(why), "{target:?}");
        }
        let long = format!("/{}", "a".repeat(MAX_BYTES));
        assert_eq!(Path::parse(&long), Err(Unclear::TooLong));
        assert!(Path::parse(&long[..MAX_BYTES]).is_ok());
    }

    #[test]
    fn prefixes_are_plain() {
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
