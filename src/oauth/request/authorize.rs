//! The authorization endpoint: RFC 6749 §4.1.1, OIDC Core §3.1.2. A request becomes a [`Request`];
//! `next_action` says what it needs.

use std::borrow::Cow;
use std::time::Duration;

use oxide_auth::code_grant::authorization as machine;
use oxide_auth::code_grant::extensions::Pkce;
use oxide_auth::primitives::grant::Extensions;
use oxide_auth::primitives::registrar::{BoundClient, ExactUrl, PreGrant, RegisteredUrl};

use super::callback::{Callback, ResponseMode};
use super::claims_request::ClaimsRequest;
use super::params::{Params, Problem};
use super::scope::Scope;
use crate::accounts::session::ACR_PASSWORD;
use crate::config::limits::{NONCE_CHARS, STATE_CHARS};
use crate::id::{ClientId, UserId};
use crate::oauth::client::{Client, GrantType};
use crate::oauth::error::{Description, Detail, Error};
use crate::oauth::pkce::Challenge;
use crate::oauth::redirect_uri;
use crate::oauth::resource::{self, Resource};

/// Every parameter that we read; the ones that may not stand twice.
pub const KNOWN: [&str; 19] = [
    "client_id",
    "redirect_uri",
    "response_type",
    "response_mode",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "prompt",
    "max_age",
    "login_hint",
    "id_token_hint",
    "acr_values",
    "claims",
    "ui_locales",
    "display",
    "request",
    "request_uri",
];

/// A refusal, and where it may be said.
#[derive(Debug)]
pub enum AuthorizeError {
    /// On a page of ours: the redirect URI is not proven.
    Page(Error),
    /// At the client.
    Callback(Box<Callback>, Error),
}

/// A valid authorization request.
#[derive(Debug)]
pub struct Request {
    /// Who asks.
    pub client: Client,
    /// Where the answer goes.
    pub callback: Callback,
    /// What is asked for.
    pub scope: Scope,
    /// Of which APIs.
    pub resources: Vec<String>,
    /// Comes back in the ID token.
    pub nonce: Option<String>,
    /// PKCE.
    pub challenge: Option<Challenge>,
    /// OIDC Core §3.1.2.1.
    pub prompt: Prompt,
    /// Longest time since the login.
    pub max_age: Option<Duration>,
    /// Whom the client expects.
    pub login_hint: Option<String>,
    /// Whom an ID token of ours says it should be.
    pub hinted: Option<UserId>,
}

/// `prompt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// No page at all.
    pub none: bool,
    /// Ask for credentials again (`login`, `select_account`).
    pub login: bool,
    /// Ask for consent again.
    pub consent: bool,
}

fn rejected(reason: &'static str) -> Detail {
    Detail::new("authz.rejected", reason)
}

/// `invalid_request` because of one parameter.
fn invalid(reason: &'static str, description: Description) -> Error {
    Error::invalid_request(rejected(reason).described(description))
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Error::invalid_request(rejected(problem.reason()).described(problem.description()))
    }
}

/// 1. The client and where the answer may go; anything wrong here is a page, never a redirect
///    (RFC 6749 §4.1.2.1).
///
/// # Errors
/// [`AuthorizeError::Page`].
pub fn callback(
    params: &Params,
    client: Option<Client>,
) -> Result<(Client, Callback), AuthorizeError> {
    let client =
        client.ok_or_else(|| AuthorizeError::Page(Error::invalid_request(rejected("client"))))?;
    let uri = params
        .one("redirect_uri")
        .map_err(|problem| AuthorizeError::Page(problem.into()))?;
    let openid = params
        .one("scope")
        .ok()
        .flatten()
        .is_some_and(|s| s.split(' ').any(|t| t == "openid"));
    let callback = redirect_uri::resolve(&client, uri, openid).map_err(AuthorizeError::Page)?;
    let state = params
        .one("state")
        .ok()
        .flatten()
        .filter(|state| is_state(state))
        .map(str::to_owned);
    let mode = match params.one("response_mode") {
        Ok(Some("form_post")) => ResponseMode::FormPost,
        _ => ResponseMode::Query,
    };
    Ok((client, callback.with(state, mode)))
}

/// The `client_id` of a request.
///
/// # Errors
/// [`AuthorizeError::Page`].
pub fn client_id(params: &Params) -> Result<ClientId, AuthorizeError> {
    match params.one("client_id") {
        Ok(Some(id)) => Ok(ClientId::from(id)),
        Ok(None) => Err(AuthorizeError::Page(Error::invalid_request(rejected(
            "client",
        )))),
        Err(problem) => Err(AuthorizeError::Page(problem.into())),
    }
}

/// What validation needs besides the request.
pub struct ValidationContext<'a> {
    /// The registered resources of the client.
    pub resources: &'a [Resource],
    /// Reads an `id_token_hint`: the person a genuine ID token of ours is about.
    pub hint: &'a dyn Fn(&str) -> Option<UserId>,
}

/// 2. Everything else; from here on refusals go to the client.
///
/// # Errors
/// [`AuthorizeError::Callback`].
pub fn validate(
    params: &Params,
    client: Client,
    callback: Callback,
    around: &ValidationContext<'_>,
) -> Result<Request, AuthorizeError> {
    match read(params, &client, &callback, around) {
        Ok(read) => Ok(Request {
            client,
            callback,
            ..read
        }),
        Err(error) => Err(AuthorizeError::Callback(Box::new(callback), error)),
    }
}

fn read(
    params: &Params,
    client: &Client,
    callback: &Callback,
    around: &ValidationContext<'_>,
) -> Result<Request, Error> {
    for name in KNOWN.into_iter().filter(|name| *name != "scope") {
        params.one(name)?;
    }
    unsupported(params)?;
    if !client.may_use(GrantType::AuthorizationCode) {
        return Err(Error::unauthorized_client(rejected("grant_type")));
    }
    let scope = requested_scope(params)?;
    let challenge = Challenge::from_request(
        params.one("code_challenge")?,
        params.one("code_challenge_method")?,
        client.require_pkce,
    )?;
    negotiate(params, client, callback, &scope, challenge.as_ref())?;
    let named = params
        .many("resource")
        .map_err(|_| Error::invalid_target(rejected("resource")))?;
    let resources = resource::targets(client, around.resources, &named, &scope)?;
    if params.one("state")?.is_some_and(|state| !is_state(state)) {
        return Err(invalid("state", Description::STATE));
    }
    let nonce = params.one("nonce")?.map(str::to_owned);
    if nonce
        .as_ref()
        .is_some_and(|nonce| nonce.chars().count() > NONCE_CHARS)
    {
        return Err(invalid("nonce", Description::NONCE));
    }
    essential_acr(params)?;
    let hinted = match params.one("id_token_hint")? {
        None => None,
        Some(hint) => Some(
            (around.hint)(hint)
                .ok_or_else(|| invalid("id_token_hint", Description::ID_TOKEN_HINT))?,
        ),
    };
    Ok(Request {
        client: client.clone(),
        callback: callback.clone(),
        scope,
        resources,
        nonce,
        challenge,
        prompt: prompt(params.one("prompt")?)?,
        max_age: max_age(params.one("max_age")?)?,
        login_hint: params.one("login_hint")?.map(str::to_owned),
        hinted,
    })
}

/// What we do not offer is refused by name (OIDC Core §3.1.2.6), never ignored.
fn unsupported(params: &Params) -> Result<(), Error> {
    if params.has("request") {
        return Err(Error::request_not_supported(rejected("request")));
    }
    if params.has("request_uri") {
        return Err(Error::request_uri_not_supported(rejected("request_uri")));
    }
    match params.one("response_type")? {
        None => return Err(invalid("response_type", Description::RESPONSE_TYPE)),
        Some("code") => {}
        Some(_) => return Err(Error::unsupported_response_type(rejected("response_type"))),
    }
    match params.one("response_mode")? {
        None | Some("query" | "form_post") => Ok(()),
        Some(_) => Err(invalid("response_mode", Description::RESPONSE_MODE)),
    }
}

fn requested_scope(params: &Params) -> Result<Scope, Error> {
    let refuse = || Error::invalid_scope(rejected("scope"));
    let text = match params.one("scope") {
        Ok(Some(text)) => text,
        Ok(None) => {
            let detail = rejected("scope").described(Description::SCOPE);
            return Err(Error::invalid_scope(detail));
        }
        Err(Problem::Encoding) => return Err(refuse()),
        Err(problem) => return Err(problem.into()),
    };
    Scope::parse(text).map_err(|_| refuse())
}

/// Drives oxide-auth's authorization machine: it owns the order of RFC 6749 §4.1.1, we answer its
/// questions from the registration.
fn negotiate(
    params: &Params,
    client: &Client,
    callback: &Callback,
    scope: &Scope,
    challenge: Option<&Challenge>,
) -> Result<(), Error> {
    let request = Asked { params, callback };
    let refuse_uri = || Error::invalid_request(rejected("redirect_uri"));
    let exact: ExactUrl = callback.uri().parse().map_err(|_| refuse_uri())?;
    let url = RegisteredUrl::Exact(exact);
    let mut authorization = machine::Authorization::new(&request);
    let mut input = machine::Input::None;
    loop {
        input = match authorization.advance(input) {
            machine::Output::Bind { client_id, .. } => machine::Input::Bound {
                request: &request,
                bound_client: BoundClient {
                    client_id: Cow::Owned(client_id),
                    redirect_uri: Cow::Owned(url.clone()),
                },
            },
            machine::Output::Extend => {
                let mut extensions = Extensions::new();
                if let Some(value) = challenge.and_then(Challenge::extension) {
                    extensions.set(&Pkce::required(), value);
                }
                machine::Input::Extended(extensions)
            }
            machine::Output::Negotiate {
                bound_client,
                scope: asked,
            } => {
                if !asked
                    .as_ref()
                    .is_some_and(|asked| client.scopes.set().priviledged_to(asked))
                {
                    return Err(Error::invalid_scope(rejected("scope")));
                }
                let pre_grant = PreGrant {
                    client_id: bound_client.client_id.clone().into_owned(),
                    redirect_uri: url.clone(),
                    scope: scope.set(),
                };
                machine::Input::Negotiated {
                    pre_grant,
                    state: None,
                }
            }
            machine::Output::Ok { .. } => return Ok(()),
            machine::Output::Err(_) => return Err(Error::invalid_request(rejected("malformed"))),
        };
    }
}

struct Asked<'a> {
    params: &'a Params,
    callback: &'a Callback,
}

impl Asked<'_> {
    fn param(&self, name: &str) -> Option<Cow<'_, str>> {
        self.params.one(name).ok().flatten().map(Cow::Borrowed)
    }
}

impl machine::Request for Asked<'_> {
    fn valid(&self) -> bool {
        true
    }
    fn client_id(&self) -> Option<Cow<'_, str>> {
        self.param("client_id")
    }
    fn scope(&self) -> Option<Cow<'_, str>> {
        self.param("scope")
    }
    fn redirect_uri(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(self.callback.uri()))
    }
    fn state(&self) -> Option<Cow<'_, str>> {
        self.param("state")
    }
    fn response_type(&self) -> Option<Cow<'_, str>> {
        self.param("response_type")
    }
    fn extension(&self, key: &str) -> Option<Cow<'_, str>> {
        self.param(key)
    }
}

/// RFC 6749 App. A.5: printable ASCII.
fn is_state(state: &str) -> bool {
    state.len() <= STATE_CHARS && state.bytes().all(|b| (0x20..=0x7e).contains(&b))
}

fn essential_acr(params: &Params) -> Result<(), Error> {
    let Some(text) = params.one("claims")? else {
        return Ok(());
    };
    let claims = ClaimsRequest::parse(text).map_err(|_| invalid("json", Description::CLAIMS))?;
    match claims.essential_acr {
        Some(values) if !values.is_empty() && values.iter().all(|value| value != ACR_PASSWORD) => {
            Err(Error::unmet_authentication_requirements(rejected("acr")))
        }
        _ => Ok(()),
    }
}

fn prompt(text: Option<&str>) -> Result<Prompt, Error> {
    let mut prompt = Prompt::default();
    for word in text
        .unwrap_or_default()
        .split(' ')
        .filter(|word| !word.is_empty())
    {
        match word {
            "none" => prompt.none = true,
            "login" | "select_account" => prompt.login = true,
            "consent" => prompt.consent = true,
            _ => return Err(invalid("prompt", Description::PROMPT)),
        }
    }
    if prompt.none && (prompt.login || prompt.consent) {
        return Err(invalid("prompt", Description::PROMPT));
    }
    Ok(prompt)
}

fn max_age(text: Option<&str>) -> Result<Option<Duration>, Error> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(seconds) if digits => Ok(Some(Duration::from_secs(seconds.into()))),
        _ => Err(invalid("max_age", Description::MAX_AGE)),
    }
}
