//! The redirect URI matcher, compared with the `url` crate. The input is the registered URI, a line end,
//! and the URI of a request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::oauth::redirect_uri::{
    ClientType, Localhost, Presence, check, is_native, resolve,
};
use url::{Host, Url};

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    }
}

/// Asserts that a URI that can be registered has the same target whatever its base.
fn registered(uri: &str) {
    for client_type in [ClientType::Confidential, ClientType::Public] {
        for localhost in [Localhost::Forbidden, Localhost::Allowed] {
            if check(uri, client_type, localhost).is_err() {
                continue;
            }
            let url = Url::parse(uri).expect("an absolute URI");
            assert!(url.fragment().is_none() && url.username().is_empty());
            assert!(url.password().is_none());
            // The response is a Location header, which must not be resolved relative to the server.
            let ours = Url::parse("https://op.example/oauth2/authorize").expect("ours");
            assert_eq!(ours.join(uri).as_ref(), Ok(&url), "relative to https");
            let ours = Url::parse("http://localhost:8080/oauth2/authorize").expect("ours");
            assert_eq!(ours.join(uri).as_ref(), Ok(&url), "relative to http");
            match url.scheme() {
                "https" => assert!(url.has_host() && !is_native(uri)),
                "http" => {
                    let name = url.host_str() == Some("localhost");
                    assert!(is_loopback(&url) || (localhost == Localhost::Allowed && name), "{url}");
                    assert!(is_native(uri));
                }
                scheme => {
                    assert!(client_type == ClientType::Public && scheme.contains('.'), "{url}");
                    assert!(is_native(uri));
                }
            }
        }
    }
}

fuzz_target!(|text: &str| {
    let (known, presented) = text.split_once('\n').unwrap_or((text, text));
    registered(known);
    let Ok(callback) = resolve(&[known.to_owned()], Some(presented), Presence::Required) else {
        assert_ne!(
            known, presented,
            "a registered URI always matches itself, unless it is too long"
        );
        return;
    };
    assert_eq!(
        callback.uri(),
        presented,
        "the response goes to the URI of the request"
    );
    if known == presented {
        return;
    }
    // The one exception is the port of a loopback literal.
    let (Ok(mut known), Ok(mut presented)) = (Url::parse(known), Url::parse(presented)) else {
        // Such a URI cannot be registered, so the match has no effect.
        assert!(check(known, ClientType::Public, Localhost::Allowed).is_err(), "{known} → {presented}");
        return;
    };
    assert_eq!(presented.scheme(), "http");
    assert!(is_loopback(&presented) && is_loopback(&known));
    assert!(presented.username().is_empty() && presented.password().is_none());
    assert!(known.set_port(None).is_ok() && presented.set_port(None).is_ok());
    assert_eq!(known, presented);
});
