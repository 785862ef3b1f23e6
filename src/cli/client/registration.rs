//! What a registration says, as options of `client create` and `client update`.

use clap::ValueEnum;

use crate::cli::Exit;
use crate::id::ClientId;
use crate::keys::Alg;
use crate::oauth::client::{AuthMethod, Client, ConsentPolicy, GrantType};
use crate::oauth::scope::Scope;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// What was given; the rest stays as it is. A list is replaced whole, and one empty value empties it.
#[derive(clap::Args)]
pub struct Fields {
    /// What people see on the consent page.
    #[arg(long)]
    name: Option<String>,
    /// Where answers may go; repeatable, compared byte for byte.
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// How a confidential client authenticates [default: client_secret_basic].
    #[arg(long, value_enum)]
    auth_method: Option<Method>,
    /// The scopes it may ask for, separated by spaces [default: openid profile email].
    #[arg(long)]
    scope: Option<String>,
    /// The grants it may use; repeatable [default: authorization_code, refresh_token].
    #[arg(long = "grant-type", value_name = "GRANT")]
    grant_types: Vec<String>,
    /// An API that it may ask tokens for, by audience; repeatable, the first is the default.
    #[arg(long = "resource", value_name = "AUDIENCE")]
    resources: Vec<String>,
    /// An API that it is the resource server of, by audience: it may introspect its tokens; repeatable.
    #[arg(long = "serves", value_name = "AUDIENCE")]
    serves: Vec<String>,
    /// Origin whose scripts may call the token endpoint; repeatable.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<String>,
    /// Where a browser may be sent after logout; repeatable.
    #[arg(long = "post-logout-redirect-uri", value_name = "URI")]
    post_logout_redirect_uris: Vec<String>,
    /// Signature algorithm of its ID tokens: RS256 or ES256 [default: RS256, or what is offered].
    #[arg(long, value_name = "ALG")]
    id_token_alg: Option<String>,
    /// Signature algorithm of its userinfo answers: RS256, ES256, or none for plain JSON
    /// [default: none].
    #[arg(long, value_name = "ALG")]
    userinfo_alg: Option<String>,
    /// When people are asked for consent [default: remember].
    #[arg(long, value_enum)]
    consent: Option<Consent>,
    /// Whether PKCE is required; false is for confidential clients whose library cannot
    /// [default: true].
    #[arg(long, value_name = "BOOL")]
    require_pkce: Option<bool>,
    /// Whether http://localhost redirect URIs are accepted [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_localhost_redirect: Option<bool>,
    /// Its home page (https).
    #[arg(long)]
    client_uri: Option<String>,
    /// Its privacy policy (https).
    #[arg(long)]
    policy_uri: Option<String>,
    /// Its terms of service (https).
    #[arg(long)]
    tos_uri: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Method {
    ClientSecretBasic,
    ClientSecretPost,
}

#[derive(Clone, Copy, ValueEnum)]
enum Consent {
    /// Once, and again when more is asked for.
    Remember,
    /// Each time.
    Always,
    /// Never: your own application.
    Skip,
}

impl Fields {
    /// A new client; its ID tokens are signed with the first of `algorithms` unless it says otherwise.
    ///
    /// # Errors
    /// A sentence and exit code 2 for a value that cannot be read.
    pub fn create(
        &self,
        id: Option<&str>,
        public: bool,
        algorithms: &[Alg],
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<Client, Exit> {
        let blank = Client {
            id: id.map_or_else(|| ClientId::new(entropy, now), ClientId::from),
            name: String::new(),
            auth_method: match public {
                true => AuthMethod::None,
                false => AuthMethod::Basic,
            },
            redirect_uris: Vec::new(),
            grant_types: vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
            scopes: Scope::parse("openid profile email").unwrap_or_default(),
            resources: Vec::new(),
            cors_origins: Vec::new(),
            post_logout_redirect_uris: Vec::new(),
            id_token_alg: algorithms.first().copied().unwrap_or(Alg::ES256),
            consent: ConsentPolicy::Remember,
            require_pkce: true,
            allow_localhost_redirect: false,
            client_uri: None,
            policy_uri: None,
            tos_uri: None,
            serves: Vec::new(),
            userinfo_alg: None,
            auth_epoch: 1,
            disabled_at: None,
            deleted_at: None,
            created_at: now,
            secrets: Vec::new(),
        };
        self.update(blank)
    }

    /// A client as these options want it.
    ///
    /// # Errors
    /// A sentence and exit code 2 for a value that cannot be read.
    pub fn update(&self, mut client: Client) -> Result<Client, Exit> {
        replace(&mut client.redirect_uris, &self.redirect_uris);
        replace(&mut client.resources, &self.resources);
        replace(&mut client.serves, &self.serves);
        replace(&mut client.cors_origins, &self.cors_origins);
        let uris = &mut client.post_logout_redirect_uris;
        replace(uris, &self.post_logout_redirect_uris);
        if let Some(name) = &self.name {
            client.name.clone_from(name);
        }
        if let Some(method) = self.auth_method {
            client.auth_method = method.of(&client)?;
        }
        if let Some(scope) = &self.scope {
            client.scopes = match scope.as_str() {
                "" => Scope::default(),
                scope => {
                    Scope::parse(scope).map_err(|_| wrong(format!("`{scope}` is no scope")))?
                }
            };
        }
        if !self.grant_types.is_empty() {
            let given = self.grant_types.iter().filter(|name| !name.is_empty());
            client.grant_types = given.map(|name| grant(name)).collect::<Result<_, _>>()?;
        }
        if let Some(name) = &self.id_token_alg {
            client.id_token_alg = alg(name)?;
        }
        if let Some(name) = &self.userinfo_alg {
            client.userinfo_alg = match name.as_str() {
                "none" => None,
                name => Some(alg(name)?),
            };
        }
        if let Some(consent) = self.consent {
            client.consent = match consent {
                Consent::Remember => ConsentPolicy::Remember,
                Consent::Always => ConsentPolicy::Always,
                Consent::Skip => ConsentPolicy::Skip,
            };
        }
        client.require_pkce = self.require_pkce.unwrap_or(client.require_pkce);
        let localhost = self.allow_localhost_redirect;
        client.allow_localhost_redirect = localhost.unwrap_or(client.allow_localhost_redirect);
        for (field, given) in [
            (&mut client.client_uri, &self.client_uri),
            (&mut client.policy_uri, &self.policy_uri),
            (&mut client.tos_uri, &self.tos_uri),
        ] {
            if let Some(given) = given {
                *field = Some(given.clone()).filter(|uri| !uri.is_empty());
            }
        }
        Ok(client)
    }
}

impl Method {
    /// A public client stays one: whoever holds its tokens could not prove a secret.
    fn of(self, client: &Client) -> Result<AuthMethod, Exit> {
        if !client.is_confidential() {
            return Err(wrong("a public client has no authentication method".into()));
        }
        Ok(match self {
            Self::ClientSecretBasic => AuthMethod::Basic,
            Self::ClientSecretPost => AuthMethod::Post,
        })
    }
}

fn replace(list: &mut Vec<String>, given: &[String]) {
    if !given.is_empty() {
        *list = given.iter().filter(|v| !v.is_empty()).cloned().collect();
    }
}

fn grant(name: &str) -> Result<GrantType, Exit> {
    GrantType::parse(name)
        .ok_or_else(|| wrong(format!("`{name}` is no grant type that is offered")))
}

fn alg(name: &str) -> Result<Alg, Exit> {
    Alg::from_name(name).ok_or_else(|| wrong(format!("`{name}` is neither RS256 nor ES256")))
}

fn wrong(message: String) -> Exit {
    Exit { code: 2, message }
}
