//! Services read paths in many ways. Whatever way that is: if the guard judges a path by a route, the
//! service serves something of that route and of no other.

use proptest::prelude::*;

use crate::path::Path;
use crate::route::Routes;

const ROUTES: &str = r#"
    routes = [
        { prefix = "/", audience = "a" },
        { prefix = "/admin", audience = "a" },
        { prefix = "/orders", audience = "a" },
        { prefix = "/orders/archive", audience = "a" },
    ]"#;

#[derive(serde::Deserialize)]
struct File {
    routes: Routes,
}

fn routes() -> Routes {
    toml::from_str::<File>(ROUTES).unwrap().routes
}

/// What some service makes of the path of a target: its segments.
type Reading = fn(&str) -> Vec<String>;

/// Each stands for a kind of service that exists.
const READINGS: [(&str, Reading); 11] = [
    ("as it came", |path| split(path, "/")),
    ("unescaped", |path| split(&unescaped(path), "/")),
    (
        "unescaped before it is split at slashes of both kinds",
        |path| split(&unescaped(path), "/\\"),
    ),
    ("unescaped twice", |path| {
        split(&unescaped(&unescaped(path)), "/\\")
    }),
    ("tidied up", |path| tidy(&split(&unescaped(path), "/\\"))),
    ("tidied up, then unescaped", |path| {
        let tidied = tidy(&split(path, "/")).join("/");
        split(&unescaped(&format!("/{tidied}")), "/")
    }),
    ("whatever the case", |path| {
        tidy(&split(&unescaped(path).to_lowercase(), "/\\"))
    }),
    ("in capitals", |path| {
        tidy(&split(&unescaped(path).to_uppercase().to_lowercase(), "/"))
    }),
    ("without parameters", |path| {
        tidy(&each(&split(&unescaped(path), "/"), |name| {
            before(name, ";")
        }))
    }),
    ("without extensions and blanks at the ends", |path| {
        tidy(&each(
            &split(&unescaped(path).to_lowercase(), "/\\"),
            |name| before(name.trim(), ".:,"),
        ))
    }),
    ("up to a NUL or a question mark", |path| {
        tidy(&split(&before(&unescaped(path), "\0?#"), "/"))
    }),
];

fn split(path: &str, at: &str) -> Vec<String> {
    path.split(|c| at.contains(c))
        .skip(1)
        .map(str::to_owned)
        .collect()
}

fn each(names: &[String], change: impl Fn(&str) -> String) -> Vec<String> {
    names.iter().map(|name| change(name)).collect()
}

/// A name remains a name: of `..` or `.well-known` something must be left.
fn before(text: &str, ends: &str) -> String {
    let is_name = |text: &str| text.contains(char::is_alphanumeric);
    let mut ends = text.char_indices().filter(|(_, c)| ends.contains(*c));
    let end = ends.find(|(at, _)| is_name(&text[..*at]));
    end.map_or(text, |(at, _)| &text[..at]).to_owned()
}

/// RFC 3986 §5.2.4, and empty segments go.
fn tidy(names: &[String]) -> Vec<String> {
    let mut kept = vec![];
    for name in names {
        match name.as_str() {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(name.clone()),
        }
    }
    kept
}

/// As lax as can be: what is no escape stays, what is no text is replaced.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut found = vec![];
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                found.push(byte);
                at += 3;
            }
            None => {
                found.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// The route that a service would say these segments belong to.
fn of(names: &[String]) -> usize {
    let begins = |prefix: &[&str]| {
        names.len() >= prefix.len() && names.iter().zip(prefix).all(|(a, b)| a == b)
    };
    match () {
        () if begins(&["orders", "archive"]) => 3,
        () if begins(&["orders"]) => 2,
        () if begins(&["admin"]) => 1,
        () => 0,
    }
}

/// What paths are made of by those who look for holes.
fn pieces() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "orders",
        "archive",
        "admin",
        "ADMIN",
        "Orders",
        "x",
        "7",
        "admin.json",
        "orders.",
        "é",
        "ſ",
    ]);
    let tricks = prop::sample::select(vec![
        "/",
        "/",
        "/",
        "//",
        "/./",
        "/../",
        "..",
        ".",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        ";",
        ";a=b",
        "%3b",
        "%00",
        "%20",
        " ",
        "%252e",
        "%252f",
        "?",
        "%3f",
        "#",
        "%23",
        ":",
        ",",
        "%",
        "%6f",
        "%41",
        "%c0%ae",
        "%EF%BC%8F",
        "%E2%80%8B",
        "%C5%BF",
        "-",
        "~",
        "+",
        "@",
        "=",
        "%2B",
        "%0a",
    ]);
    let piece = prop_oneof![2 => words, 3 => tricks];
    prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_service_reads_another_route(rest in pieces()) {
        let target = format!("/{rest}");
        let routes = routes();
        let found = Path::parse(&target).ok().and_then(|path| routes.find("GET", &path).ok());
        if let Some((judged, _)) = found {
            let path = target.split('?').next().unwrap();
            for (name, read) in READINGS {
                let names = read(path);
                prop_assert_eq!(judged, of(&names), "{} {}: {:?}", target, name, names);
            }
        }
    }
}

#[test]
fn plain_paths_are_judged() {
    let routes = routes();
    for (target, expected) in [
        ("/", 0),
        ("/x/7", 0),
        ("/admin/x", 1),
        ("/orders/7?x", 2),
        ("/orders/archive/caf%C3%A9", 3),
    ] {
        let path = Path::parse(target).unwrap();
        let (judged, _) = routes.find("GET", &path).unwrap();
        assert_eq!(judged, expected, "{target}");
        for (name, read) in READINGS {
            assert_eq!(
                of(&read(target.split('?').next().unwrap())),
                expected,
                "{target} {name}"
            );
        }
    }
}
