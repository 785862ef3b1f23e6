//! UserInfo: OIDC Core §5.3, §5.4. Selects the claims of a user by the scope of a token.

use serde_json::{Map, Value};

use super::error::Error;
use super::request::scope::Scope;
use crate::accounts::user::User;
use crate::id::ClientId;
use crate::keys::{Alg, KeyView};

/// The standard claims of each scope (§5.4). Claims that an account does not have are omitted.
const CLAIMS: [(&str, &[&str]); 4] = [
    (
        "profile",
        &[
            "name",
            "family_name",
            "given_name",
            "middle_name",
            "nickname",
            "preferred_username",
            "profile",
            "picture",
            "website",
            "gender",
            "birthdate",
            "zoneinfo",
            "locale",
            "updated_at",
        ],
    ),
    ("email", &["email", "email_verified"]),
    ("address", &["address"]),
    ("phone", &["phone_number", "phone_number_verified"]),
];

/// Returns the names of the claims that responses may contain besides `sub`.
pub fn claim_names() -> impl Iterator<Item = &'static str> {
    CLAIMS.iter().flat_map(|(_, names)| names.iter().copied())
}

/// Returns `sub` and the claims of `user` that `scope` permits.
pub fn claims(user: &User, scope: &Scope) -> Map<String, Value> {
    let all = all_claims(user);
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), user.id.as_str().into());
    for (_, names) in CLAIMS.iter().filter(|(name, _)| scope.contains(name)) {
        for name in *names {
            if let Some(value) = all.get(*name) {
                claims.insert((*name).to_owned(), value.clone());
            }
        }
    }
    claims
}

/// Signs the claims as a JWT for the client (§5.3.2). It has no `exp`, so that it cannot be mistaken for an ID
/// token.
///
/// # Errors
/// 503 without a usable signing key.
pub fn sign(
    mut claims: Map<String, Value>,
    client: &ClientId,
    issuer: &str,
    alg: Alg,
    keys: &KeyView,
) -> Result<String, Error> {
    claims.insert("iss".to_owned(), issuer.into());
    claims.insert("aud".to_owned(), client.as_str().into());
    Ok(keys.sign(alg, "JWT", &claims)?)
}

/// Returns all claims of a user, by the names of §5.1.
fn all_claims(user: &User) -> Map<String, Value> {
    let mut claims = user.claims.clone();
    let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    put("preferred_username", user.username.as_str().into());
    put("updated_at", user.updated_at.secs().into());
    if let Some(name) = &user.name {
        put("name", name.as_str().into());
    }
    if let Some(email) = &user.email {
        put("email", email.as_str().into());
        put("email_verified", user.email_verified.into());
    }
    claims
}

/// Returns whether an operator may set a claim: it is a standard claim that has no column of its own, and its value
/// has the type of §5.1: `address` is an object, `phone_number_verified` a boolean, all others are strings.
pub fn is_settable(name: &str, value: &Value) -> bool {
    let from_columns = [
        "name",
        "preferred_username",
        "updated_at",
        "email",
        "email_verified",
    ];
    let is_standard = CLAIMS.iter().any(|(_, names)| names.contains(&name));
    let has_type = match name {
        "address" => value.is_object(),
        "phone_number_verified" => value.is_boolean(),
        _ => value.is_string(),
    };
    is_standard && !from_columns.contains(&name) && has_type
}
