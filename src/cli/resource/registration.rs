//! The fields of an API's registration: options of `resource create` and `resource update`, and entries in a file
//! for `apply`.

use portcullis_verifier::MaxAge;
use serde::Deserialize;

use crate::admin::resources::NO_LIMIT;
use crate::cli::UsageError;
use crate::config::HumanDuration;
use crate::id;
use crate::keys::Alg;
use crate::oauth::request::scope::Scope;
use crate::oauth::resource::Resource;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// The fields to set. Absent fields keep their value.
#[derive(Clone, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The audience. Set in files only.
    #[arg(skip)]
    pub audience: String,
    /// Display name.
    #[arg(long)]
    name: Option<String>,
    /// Scopes, separated by spaces. The command line has a separate option.
    #[arg(skip)]
    pub scope: Option<String>,
    /// Signature algorithm of its access tokens: ES256 or RS256.
    #[arg(long)]
    alg: Option<String>,
    /// Lifetime of its access tokens, at most 60m; empty means `tokens.access`.
    #[arg(long, value_name = "DURATION")]
    access_ttl: Option<String>,
    /// Maximum age of the revocation data with which its services accept tokens, such as 3s; at most 60m, or
    /// `none` for any age.
    #[arg(long, value_name = "DURATION")]
    max_age: Option<String>,
}

impl Fields {
    /// Creates an API.
    ///
    /// # Errors
    /// [`UsageError`] for an invalid value.
    pub fn create(
        &self,
        audience: &str,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<Resource, UsageError> {
        self.update(Resource {
            id: id::uuid(entropy, now),
            audience: audience.to_owned(),
            name: String::new(),
            scopes: Scope::default(),
            access_ttl: None,
            alg: Alg::ES256,
            max_age: MaxAge::STANDARD,
            created_at: now,
        })
    }

    /// Applies the fields to an API.
    ///
    /// # Errors
    /// [`UsageError`] for an invalid value.
    pub fn update(&self, mut resource: Resource) -> Result<Resource, UsageError> {
        if let Some(name) = &self.name {
            resource.name.clone_from(name);
        }
        if let Some(scope) = &self.scope {
            resource.scopes = Scope::parse(scope)
                .map_err(|_| UsageError::new("scope", format!("invalid scope `{scope}`")))?;
        }
        if let Some(name) = &self.alg {
            let why = || format!("`{name}` is neither ES256 nor RS256");
            resource.alg = Alg::from_name(name).ok_or_else(|| UsageError::new("alg", why()))?;
        }
        if let Some(ttl) = &self.access_ttl {
            resource.access_ttl = match ttl.as_str() {
                "" => None,
                text => {
                    let duration: HumanDuration = text
                        .parse()
                        .map_err(|why| UsageError::new("access_ttl", why))?;
                    Some(duration.0)
                }
            };
        }
        if let Some(text) = &self.max_age {
            resource.max_age = max_age(text).map_err(|why| UsageError::new("max_age", why))?;
        }
        Ok(resource)
    }
}

fn max_age(text: &str) -> Result<MaxAge, String> {
    if text == NO_LIMIT {
        return Ok(MaxAge::FAIL_OPEN);
    }
    let duration: HumanDuration = text.parse()?;
    Ok(MaxAge::secs(duration.0.as_secs()))
}
