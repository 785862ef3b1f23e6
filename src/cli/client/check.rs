//! Whether a registration makes sense to a server: alone, and beside the APIs that are registered.

use crate::config::Config;
use crate::keys::ring::check_offered;
use crate::oauth::client::Client;
use crate::oauth::resource::Resource;
use crate::oauth::scope::IDENTITY;

/// Whether a server of this configuration would serve the client.
///
/// # Errors
/// A sentence that begins with the field.
pub fn check(client: &Client, config: &Config) -> Result<(), String> {
    let issuer = config.issuer().map_err(|refused| refused.to_string())?;
    client.check(issuer.is_loopback()).map_err(|(_, why)| why)?;
    client
        .algorithms()
        .try_for_each(|alg| check_offered(&config.keys, alg))
}

/// Whether every API that it names is among the registered ones, and each scope belongs to one that it
/// may ask for: no token ever has another (RFC 8707 §2.2).
///
/// # Errors
/// A sentence that begins with the field.
pub fn check_names(client: &Client, registered: &[Resource]) -> Result<(), String> {
    let is_known = |audience: &String| registered.iter().any(|api| api.audience == *audience);
    for (field, named) in [("resources", &client.resources), ("serves", &client.serves)] {
        if let Some(odd) = named.iter().find(|audience| !is_known(audience)) {
            return Err(format!(
                "{field}: the resource `{odd}` is not registered; see `portcullis resource list`"
            ));
        }
    }
    let (asked, others): (Vec<&Resource>, Vec<&Resource>) =
        (registered.iter()).partition(|api| client.resources.contains(&api.audience));
    let offers = |apis: &[&Resource], scope| apis.iter().any(|api| api.scopes.contains(scope));
    let mut scopes = client.scopes.iter();
    match scopes.find(|scope| !IDENTITY.contains(scope) && !offers(&asked, scope)) {
        Some(odd) => Err(nobodys(odd, &asked, &others)),
        None => Ok(()),
    }
}

/// Why a scope cannot be granted, and what was probably meant.
fn nobodys(scope: &str, asked: &[&Resource], others: &[&Resource]) -> String {
    if let Some(owner) = others.iter().find(|api| api.scopes.contains(scope)) {
        return format!(
            "scope: `{scope}` belongs to `{}`, which is not among the client's resources",
            owner.audience
        );
    }
    let offered = asked.iter().flat_map(|api| api.scopes.iter());
    let alike = offered
        .chain(IDENTITY)
        .map(|known| (strsim::levenshtein(known, scope), known));
    let meant = alike
        .filter(|(letters, _)| letters * 3 <= scope.len())
        .min();
    let hint = meant.map_or_else(String::new, |(_, known)| {
        format!("; did you mean `{known}`?")
    });
    format!("scope: `{scope}` belongs to none of the client's resources{hint}")
}
