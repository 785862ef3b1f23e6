//! The authorization endpoint: RFC 6749 §4.1.1, OIDC Core §3.1.2. Validates the parameters as a [`Request`];
//! `next_action` determines what the request needs.

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
use crate::oauth::client::Client;
use crate::oauth::error::{Cause, Description, Error};
use crate::oauth::grant::GrantType;
use crate::oauth::macros::details;
use crate::oauth::pkce::{self, Challenge};
use crate::oauth::redirect_uri::{self, Presence};
use crate::oauth::resource::{self, Resource, Targets};

/// Every parameter that this server reads and that may occur only once.
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

/// Why an authorization request is rejected, and where the error may be sent.
#[derive(Debug)]
pub enum AuthorizeError {
    /// The redirect URI is not validated, so the error is shown on a page.
    Page(Error),
    /// The error is sent to the redirect URI.
    Callback(Box<Callback>, Error),
}

/// A valid authorization request.
#[derive(Debug)]
pub struct Request {
    /// The client.
    pub client: Client,
    /// Where the response is sent.
    pub callback: Callback,
    /// The requested scope.
    pub scope: Scope,
    /// The requested APIs.
    pub targets: Targets,
    /// `nonce` of the ID token.
    pub nonce: Option<String>,
    /// The PKCE challenge.
    pub challenge: Option<Challenge>,
    /// `prompt` (OIDC Core §3.1.2.1).
    pub prompt: Prompt,
    /// The maximum time since the user authenticated.
    pub max_age: Option<Duration>,
    /// The user name that the client expects.
    pub login_hint: Option<String>,
    /// The user that `id_token_hint` names.
    pub hinted: Option<UserId>,
}

/// What a user selected on the consent page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// A part of the requested scope that may be granted.
    Grantable(Scope),
    /// Nothing.
    Empty,
    /// `openid` is missing although it was requested (OIDC Core §3.1.2.1). The page always sends it.
    WithoutOpenid,
    /// A scope that was not requested.
    Unrequested,
}

impl Request {
    /// Evaluates the scopes that a user selected.
    pub fn select(&self, selected: &[&str]) -> Selection {
        if selected.iter().any(|token| !self.scope.contains(token)) {
            return Selection::Unrequested;
        }
        let granted = self.scope.retain(|token| selected.contains(&token));
        if granted.contains("openid") != self.scope.contains("openid") {
            Selection::WithoutOpenid
        } else if granted.is_empty() {
            Selection::Empty
        } else {
            Selection::Grantable(granted)
        }
    }
}

/// `prompt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Show no page.
    pub none: bool,
    /// Request credentials again (`login`, `select_account`).
    pub login: bool,
    /// Request consent again.
    pub consent: bool,
}

details! {
    enum Rejection {
        UnknownClient =>
            Detail::new("authz.rejected", "client").caused_by(Cause::UnknownClient),
        GrantType => Detail::new("authz.rejected", "grant_type"),
        Request => Detail::new("authz.rejected", "request"),
        RequestUri => Detail::new("authz.rejected", "request_uri"),
        RedirectUri => Detail::new("authz.rejected", "redirect_uri"),
        ResponseTypeMissing =>
            Detail::new("authz.rejected", "response_type").described(Description::RESPONSE_TYPE),
        ResponseType => Detail::new("authz.rejected", "response_type"),
        ResponseMode =>
            Detail::new("authz.rejected", "response_mode").described(Description::RESPONSE_MODE),
        ScopeMissing => Detail::new("authz.rejected", "scope").described(Description::SCOPE),
        Scope => Detail::new("authz.rejected", "scope"),
        Resource => Detail::new("authz.rejected", "resource"),
        State => Detail::new("authz.rejected", "state").described(Description::STATE),
        Nonce => Detail::new("authz.rejected", "nonce").described(Description::NONCE),
        Claims => Detail::new("authz.rejected", "json").described(Description::CLAIMS),
        Acr => Detail::new("authz.rejected", "acr"),
        IdTokenHint =>
            Detail::new("authz.rejected", "id_token_hint").described(Description::ID_TOKEN_HINT),
        Prompt => Detail::new("authz.rejected", "prompt").described(Description::PROMPT),
        MaxAge => Detail::new("authz.rejected", "max_age").described(Description::MAX_AGE),
        Malformed => Detail::new("authz.rejected", "malformed"),
    }
}

/// Performs step 1: determines the client and where the response may be sent. An error is shown on a page and
/// never sent to a redirect URI (RFC 6749 §4.1.2.1).
///
/// # Errors
/// [`AuthorizeError::Page`].
pub fn callback(
    params: &Params,
    client: Option<Client>,
) -> Result<(Client, Callback), AuthorizeError> {
    let client = client.ok_or_else(unknown_client)?;
    let uri = params
        .one("redirect_uri")
        .map_err(|problem| AuthorizeError::Page(problem.into()))?;
    let scope = params.one("scope").ok().flatten().unwrap_or_default();
    let presence = match scope.split(' ').any(|token| token == "openid") {
        true => Presence::Required,
        false => Presence::Optional,
    };
    let callback = redirect_uri::resolve(&client.redirect_uris, uri, presence);
    let callback =
        callback.map_err(|error| match client.may_use(GrantType::AuthorizationCode) {
            true => AuthorizeError::Page(error),
            // The page does not tell such a client, a resource server for instance, from an unknown one.
            false => unknown_client(),
        })?;
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

/// Returns the `client_id` of a request.
///
/// # Errors
/// [`AuthorizeError::Page`].
pub fn client_id(params: &Params) -> Result<ClientId, AuthorizeError> {
    match params.one("client_id") {
        Ok(Some(id)) => Ok(ClientId::from(id)),
        Ok(None) => Err(unknown_client()),
        Err(problem) => Err(AuthorizeError::Page(problem.into())),
    }
}

fn unknown_client() -> AuthorizeError {
    AuthorizeError::Page(Error::invalid_request(Rejection::UnknownClient))
}

/// The input of [`validate`] besides the request.
pub struct ValidationContext<'a> {
    /// The registered resources of the client.
    pub resources: &'a [Resource],
    /// Reads an `id_token_hint`: returns the user of an ID token that this server issued.
    pub hint: &'a dyn Fn(&str) -> Option<UserId>,
}

/// Performs step 2: validates everything else. Errors are sent to the redirect URI.
///
/// # Errors
/// [`AuthorizeError::Callback`].
pub fn validate(
    params: &Params,
    client: Client,
    callback: Callback,
    context: &ValidationContext<'_>,
) -> Result<Request, AuthorizeError> {
    read(params, &client, &callback, context)
        .map_err(|error| AuthorizeError::Callback(Box::new(callback), error))
}

fn read(
    params: &Params,
    client: &Client,
    callback: &Callback,
    context: &ValidationContext<'_>,
) -> Result<Request, Error> {
    for name in KNOWN.into_iter().filter(|name| *name != "scope") {
        params.one(name)?;
    }
    unsupported(params)?;
    if !client.may_use(GrantType::AuthorizationCode) {
        let known: Vec<&str> = client
            .grant_types
            .iter()
            .map(|grant| grant.as_str())
            .collect();
        let error = Error::unauthorized_client(Rejection::GrantType);
        return Err(error.comparing(GrantType::AuthorizationCode.as_str(), known.join(" ")));
    }
    let scope = requested_scope(params)?;
    let challenge = Challenge::from_request(
        params.one("code_challenge")?,
        params.one("code_challenge_method")?,
        match client.require_pkce {
            true => pkce::Requirement::Required,
            false => pkce::Requirement::Optional,
        },
    )?;
    negotiate(params, client, callback, &scope, challenge.as_ref())?;
    let requested = params
        .many("resource")
        .map_err(|_| Error::invalid_target(Rejection::Resource))?;
    let targets = resource::targets(&client.scopes, context.resources, &requested, &scope)?;
    if params.one("state")?.is_some_and(|state| !is_state(state)) {
        return Err(Error::invalid_request(Rejection::State));
    }
    let nonce = params.one("nonce")?.map(str::to_owned);
    if nonce
        .as_ref()
        .is_some_and(|nonce| nonce.chars().count() > NONCE_CHARS)
    {
        return Err(Error::invalid_request(Rejection::Nonce));
    }
    essential_acr(params)?;
    let hinted = match params.one("id_token_hint")? {
        None => None,
        Some(hint) => Some(
            (context.hint)(hint).ok_or_else(|| Error::invalid_request(Rejection::IdTokenHint))?,
        ),
    };
    Ok(Request {
        client: client.clone(),
        callback: callback.clone(),
        scope,
        targets,
        nonce,
        challenge,
        prompt: prompt(params.one("prompt")?)?,
        max_age: max_age(params.one("max_age")?)?,
        login_hint: params.one("login_hint")?.map(str::to_owned),
        hinted,
    })
}

/// Rejects unsupported parameters and values with their own errors (OIDC Core §3.1.2.6). They are never ignored.
fn unsupported(params: &Params) -> Result<(), Error> {
    if params.has("request") {
        return Err(Error::request_not_supported(Rejection::Request));
    }
    if params.has("request_uri") {
        return Err(Error::request_uri_not_supported(Rejection::RequestUri));
    }
    match params.one("response_type")? {
        None => return Err(Error::invalid_request(Rejection::ResponseTypeMissing)),
        Some("code") => {}
        Some(_) => return Err(Error::unsupported_response_type(Rejection::ResponseType)),
    }
    match params.one("response_mode")? {
        None | Some("query" | "form_post") => Ok(()),
        Some(_) => Err(Error::invalid_request(Rejection::ResponseMode)),
    }
}

fn requested_scope(params: &Params) -> Result<Scope, Error> {
    let invalid = || Error::invalid_scope(Rejection::Scope);
    let text = match params.one("scope") {
        Ok(Some(text)) => text,
        Ok(None) => return Err(Error::invalid_scope(Rejection::ScopeMissing)),
        Err(Problem::Encoding) => return Err(invalid()),
        Err(problem) => return Err(problem.into()),
    };
    Scope::parse(text).map_err(|_| invalid())
}

/// Drives oxide-auth's authorization state machine, which implements the order of RFC 6749 §4.1.1. Its
/// queries are answered from the registration.
fn negotiate(
    params: &Params,
    client: &Client,
    callback: &Callback,
    scope: &Scope,
    challenge: Option<&Challenge>,
) -> Result<(), Error> {
    let request = MachineRequest { params, callback };
    let uri = callback.uri().parse::<ExactUrl>();
    let exact = uri.map_err(|_| Error::invalid_request(Rejection::RedirectUri))?;
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
                scope: requested,
            } => {
                if !requested
                    .as_ref()
                    .is_some_and(|requested| client.scopes.set().priviledged_to(requested))
                {
                    let refused = scope.retain(|token| !client.scopes.contains(token));
                    let error = Error::invalid_scope(Rejection::Scope);
                    return Err(error.comparing(refused.to_string(), client.scopes.to_string()));
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
            machine::Output::Err(_) => return Err(Error::invalid_request(Rejection::Malformed)),
        };
    }
}

struct MachineRequest<'a> {
    params: &'a Params,
    callback: &'a Callback,
}

impl MachineRequest<'_> {
    fn param(&self, name: &str) -> Option<Cow<'_, str>> {
        self.params.one(name).ok().flatten().map(Cow::Borrowed)
    }
}

impl machine::Request for MachineRequest<'_> {
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

/// Returns whether `state` is printable ASCII (RFC 6749 App. A.5) within the limit.
fn is_state(state: &str) -> bool {
    state.len() <= STATE_CHARS && state.bytes().all(|b| (0x20..=0x7e).contains(&b))
}

fn essential_acr(params: &Params) -> Result<(), Error> {
    let Some(text) = params.one("claims")? else {
        return Ok(());
    };
    let claims =
        ClaimsRequest::parse(text).map_err(|_| Error::invalid_request(Rejection::Claims))?;
    match claims.essential_acr {
        Some(values) if !values.is_empty() && values.iter().all(|value| value != ACR_PASSWORD) => {
            Err(Error::unmet_authentication_requirements(Rejection::Acr))
        }
        _ => Ok(()),
    }
}

fn prompt(text: Option<&str>) -> Result<Prompt, Error> {
    let mut prompt = Prompt::default();
    let values = text.unwrap_or_default().split(' ');
    for value in values.filter(|value| !value.is_empty()) {
        match value {
            "none" => prompt.none = true,
            "login" | "select_account" => prompt.login = true,
            "consent" => prompt.consent = true,
            _ => return Err(Error::invalid_request(Rejection::Prompt)),
        }
    }
    if prompt.none && (prompt.login || prompt.consent) {
        return Err(Error::invalid_request(Rejection::Prompt));
    }
    Ok(prompt)
}

fn max_age(text: Option<&str>) -> Result<Option<Duration>, Error> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(seconds) if digits => Ok(Some(Duration::from_secs(seconds.into()))),
        _ => Err(Error::invalid_request(Rejection::MaxAge)),
    }
}
