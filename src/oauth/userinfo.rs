//! UserInfo: OIDC Core §5.3, §5.4. What the scope of a token allows to be told about its person.

use serde_json::{Map, Value};

use super::error::Error;
use super::request::scope::Scope;
use crate::accounts::user::User;
use crate::id::ClientId;
use crate::keys::{Alg, KeyView};

/// The standard claims of each scope (§5.4); those that an account does not have are left out.
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

/// What `scope` allows to be told about `user`. `sub` always.
pub fn claims(user: &User, scope: &Scope) -> Map<String, Value> {
    let known = known(user);
    let mut told = Map::new();
    told.insert("sub".to_owned(), user.id.as_str().into());
    for (_, names) in CLAIMS.iter().filter(|(name, _)| scope.contains(name)) {
        for name in *names {
            if let Some(value) = known.get(*name) {
                told.insert((*name).to_owned(), value.clone());
            }
        }
    }
    told
}

/// The same as a signed JWT (§5.3.2): from us, for the client. It has no `exp`, so nobody takes it for
/// an ID token.
///
/// # Errors
/// 503 without a usable signer.
pub fn sign(
    mut told: Map<String, Value>,
    client: &ClientId,
    issuer: &str,
    alg: Alg,
    keys: &KeyView,
) -> Result<String, Error> {
    told.insert("iss".to_owned(), issuer.into());
    told.insert("aud".to_owned(), client.as_str().into());
    Ok(keys.sign(alg, "JWT", &told)?)
}

/// Everything that is known about a person, under the names of §5.1.
fn known(user: &User) -> Map<String, Value> {
    let mut known = user.claims.clone();
    let mut put = |name: &str, value: Value| known.insert(name.to_owned(), value);
    put("preferred_username", user.username.as_str().into());
    put("updated_at", user.updated_at.secs().into());
    if let Some(name) = &user.name {
        put("name", name.as_str().into());
    }
    if let Some(email) = &user.email {
        put("email", email.as_str().into());
        put("email_verified", user.email_verified.into());
    }
    known
}

/// Whether a name is a standard claim that an operator may set, and its value has the right type:
/// `address` an object, `phone_number_verified` a boolean, all others text (§5.1).
pub fn is_settable(name: &str, value: &Value) -> bool {
    let ours = [
        "name",
        "preferred_username",
        "updated_at",
        "email",
        "email_verified",
    ];
    let standard = CLAIMS.iter().any(|(_, names)| names.contains(&name));
    let typed = match name {
        "address" => value.is_object(),
        "phone_number_verified" => value.is_boolean(),
        _ => value.is_string(),
    };
    standard && !ours.contains(&name) && typed
}
