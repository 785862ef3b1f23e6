//! Property test: services interpret paths in many ways, and under each of these interpretations a
//! path that the guard accepts belongs to the route that the guard has chosen.

use proptest::prelude::*;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

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

/// How a kind of service splits the path of a target into segments.
type Interpretation = fn(&str) -> Vec<String>;

/// Interpretations of existing kinds of services.
const INTERPRETATIONS: [(&str, Interpretation); 13] = [
    ("unchanged", |path| split(path, "/")),
    ("decoded", |path| split(&decode(path), "/")),
    ("decoded, then split at slashes and backslashes", |path| {
        split(&decode(path), "/\\")
    }),
    ("decoded twice", |path| split(&decode(&decode(path)), "/\\")),
    ("decoded, then normalized", |path| {
        normalize(&split(&decode(path), "/\\"))
    }),
    ("normalized, then decoded", |path| {
        let normalized = normalize(&split(path, "/")).join("/");
        split(&decode(&format!("/{normalized}")), "/")
    }),
    ("lower case", |path| {
        normalize(&split(&decode(path).to_lowercase(), "/\\"))
    }),
    ("upper case", |path| {
        normalize(&split(&decode(path).to_uppercase().to_lowercase(), "/"))
    }),
    ("normalized by NFKC", |path| {
        let decoded: String = decode(path).nfkc().collect();
        normalize(&split(&decoded.to_lowercase(), "/\\"))
    }),
    ("without accents", |path| {
        let decoded: String = decode(path)
            .nfkd()
            .filter(|c| !is_combining_mark(*c))
            .collect();
        normalize(&split(&decoded.to_lowercase(), "/\\"))
    }),
    ("without parameters", |path| {
        normalize(&map_names(&split(&decode(path), "/"), |name| {
            cut_at(name, ";")
        }))
    }),
    ("without extensions, trimmed", |path| {
        normalize(&map_names(
            &split(&decode(path).to_lowercase(), "/\\"),
            |name| cut_at(name.trim(), ".:,"),
        ))
    }),
    ("up to a NUL or a question mark", |path| {
        normalize(&split(&cut_at(&decode(path), "\0?#"), "/"))
    }),
];

fn split(path: &str, separators: &str) -> Vec<String> {
    path.split(|c| separators.contains(c))
        .skip(1)
        .map(str::to_owned)
        .collect()
}

fn map_names(names: &[String], change: impl Fn(&str) -> String) -> Vec<String> {
    names.iter().map(|name| change(name)).collect()
}

/// Cuts `text` at the first of `delimiters` that follows a letter or digit. So `..` is unchanged
/// and `.well-known` is not cut at its leading dot.
fn cut_at(text: &str, delimiters: &str) -> String {
    let is_name = |text: &str| text.contains(char::is_alphanumeric);
    let mut ends = text.char_indices().filter(|(_, c)| delimiters.contains(*c));
    let end = ends.find(|(index, _)| is_name(&text[..*index]));
    end.map_or(text, |(index, _)| &text[..index]).to_owned()
}

/// Removes dot segments (RFC 3986 §5.2.4) and empty segments.
fn normalize(names: &[String]) -> Vec<String> {
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

/// Decodes leniently: keeps malformed percent-encoding and replaces invalid UTF-8.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = vec![];
    let mut index = 0;
    while index < bytes.len() {
        let digits = text
            .get(index + 1..index + 3)
            .filter(|_| bytes[index] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Returns the index of the route that a service would assign to these segments.
fn route_of(names: &[String]) -> usize {
    let starts_with = |prefix: &[&str]| {
        names.len() >= prefix.len() && names.iter().zip(prefix).all(|(a, b)| a == b)
    };
    match () {
        () if starts_with(&["orders", "archive"]) => 3,
        () if starts_with(&["orders"]) => 2,
        () if starts_with(&["admin"]) => 1,
        () => 0,
    }
}

/// Generates paths from names and from character sequences that attackers use.
fn attack_paths() -> impl Strategy<Value = String> {
    let names = prop::sample::select(vec![
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
        "%E2%93%90dmin",
        "%F0%9D%90%9Admin",
        "a%CC%8Admin",
        "%C3%A5dmin",
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
    let piece = prop_oneof![2 => names, 3 => tricks];
    prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn accepted_path_has_one_route_in_every_interpretation(rest in attack_paths()) {
        let target = format!("/{rest}");
        let routes = routes();
        let found = Path::parse(&target).ok().and_then(|path| routes.find("GET", &path).ok());
        if let Some((chosen, _)) = found {
            let path = target.split('?').next().unwrap();
            for (name, interpret) in INTERPRETATIONS {
                let names = interpret(path);
                prop_assert_eq!(chosen, route_of(&names), "{} {}: {:?}", target, name, names);
            }
        }
    }
}

#[test]
fn plain_paths_are_accepted() {
    let routes = routes();
    for (target, expected) in [
        ("/", 0),
        ("/x/7", 0),
        ("/admin/x", 1),
        ("/orders/7?x", 2),
        ("/orders/archive/caf%C3%A9", 3),
    ] {
        let path = Path::parse(target).unwrap();
        let (chosen, _) = routes.find("GET", &path).unwrap();
        assert_eq!(chosen, expected, "{target}");
        for (name, interpret) in INTERPRETATIONS {
            assert_eq!(
                route_of(&interpret(target.split('?').next().unwrap())),
                expected,
                "{target} {name}"
            );
        }
    }
}
