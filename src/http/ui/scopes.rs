//! How a page describes scopes to the user: what a client may do, and the name of the scope.

use std::collections::HashMap;

use crate::oauth::request::scope::Scope;

/// A scope and its description.
pub(super) struct ScopeLine {
    pub(super) name: String,
    pub(super) description: String,
    /// Whether the user cannot exclude it.
    pub(super) required: bool,
}

/// Describes each scope, with the registered descriptions of those of APIs.
pub(super) fn lines(scope: &Scope, registered: &HashMap<String, String>) -> Vec<ScopeLine> {
    scope.iter().map(|name| line(name, registered)).collect()
}

fn line(name: &str, registered: &HashMap<String, String>) -> ScopeLine {
    let own = match name {
        "openid" => Some("Know who you are when you sign in"),
        "profile" => Some("See your name"),
        "email" => Some("See your e-mail address"),
        "address" => Some("See your postal address"),
        "phone" => Some("See your phone number"),
        "offline_access" => Some("Keep this access when you are not using the application"),
        _ => None,
    };
    ScopeLine {
        name: name.to_owned(),
        description: own
            .map(str::to_owned)
            .or_else(|| registered.get(name).cloned())
            .unwrap_or_else(|| "Use this permission on your behalf".to_owned()),
        required: name == "openid",
    }
}
