//! The authorization endpoint: RFC 6749 §4.1.1, OIDC Core §3.1.2. A request becomes a [`Request`],
//! and [`next`] says what it needs.

use std::borrow::Cow;
use std::time::Duration;

use oxide_auth::code_grant::authorization as machine;
use oxide_auth::code_grant::extensions::Pkce;
use oxide_auth::primitives::grant::Extensions;
use oxide_auth::primitives::registrar::{BoundClient, ExactUrl, PreGrant, RegisteredUrl};

use super::callback::{Callback, ResponseMode};
use super::claims_request::ClaimsRequest;
use super::client::{Client, ConsentPolicy, GrantType};
use super::error::{Detail, Error};
use super::params::{Params, Problem};
use super::pkce::Challenge;
use super::redirect_uri;
use super::resource::{self, Resource};
use super::scope::Scope;
use crate::accounts::consent::Consent;
use crate::accounts::session::{ACR_PASSWORD, Login};
use crate::config::limits::{NONCE_CHARS, STATE_CHARS};
use crate::id::{AuthorizationId, ClientId, ConsentId, Sid, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

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
pub enum Refused {
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

/// An authorization on its way: the request as stored, and what has happened to it.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Stands in the URL of each page.
    pub id: AuthorizationId,
    /// Who asks.
    pub client_id: ClientId,
    /// The request, form-encoded.
    pub params: String,
    /// The browser that began it: SHA-256 of its cookie. None until the first GET after a
    /// cross-site POST.
    pub browser: Option<Hash>,
    /// Who signed in for it.
    pub user_id: Option<UserId>,
    /// In which login.
    pub sid: Option<Sid>,
    /// How far it came.
    pub stage: Stage,
    /// What the person ticked.
    pub scope: Option<Scope>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it must be done.
    pub expires_at: Timestamp,
    /// When it was answered.
    pub taken_at: Option<Timestamp>,
}

/// How far an authorization came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing yet.
    Begun,
    /// Its own login was done.
    SignedIn,
    /// Its own consent was given.
    Consented,
    /// The person refused.
    Denied,
}

impl Stage {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::SignedIn => "signed_in",
            Self::Consented => "consented",
            Self::Denied => "denied",
        }
    }

    /// From the stored form.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Begun, Self::SignedIn, Self::Consented, Self::Denied]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// What an authorization needs next.
#[derive(Debug)]
pub enum Step {
    /// The person must sign in.
    Login,
    /// The person must be asked.
    Consent,
    /// Everything is there: issue a code for this scope.
    Answer {
        /// What is granted.
        scope: Scope,
        /// The consent it rests on.
        consent_id: Option<ConsentId>,
    },
    /// The client is told no.
    Refuse(Error),
}

fn rejected(reason: &'static str) -> Detail {
    Detail::new("authz.rejected", reason)
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Error::invalid_request(rejected(problem.reason()))
    }
}

/// 1. The client and where the answer may go; anything wrong here is a page, never a redirect
///    (RFC 6749 §4.1.2.1).
///
/// # Errors
/// [`Refused::Page`].
pub fn callback(params: &Params, client: Option<Client>) -> Result<(Client, Callback), Refused> {
    let client = client.ok_or_else(|| Refused::Page(Error::invalid_request(rejected("client"))))?;
    let uri = params
        .one("redirect_uri")
        .map_err(|problem| Refused::Page(problem.into()))?;
    let openid = params
        .one("scope")
        .ok()
        .flatten()
        .is_some_and(|s| s.split(' ').any(|t| t == "openid"));
    let callback = redirect_uri::resolve(&client, uri, openid).map_err(Refused::Page)?;
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
/// [`Refused::Page`].
pub fn client_id(params: &Params) -> Result<ClientId, Refused> {
    match params.one("client_id") {
        Ok(Some(id)) => Ok(ClientId::from(id)),
        Ok(None) => Err(Refused::Page(Error::invalid_request(rejected("client")))),
        Err(problem) => Err(Refused::Page(problem.into())),
    }
}

/// What validation needs besides the request.
pub struct Surroundings<'a> {
    /// The registered resources of the client.
    pub resources: &'a [Resource],
    /// Reads an `id_token_hint`: the person a genuine ID token of ours is about.
    pub hint: &'a dyn Fn(&str) -> Option<UserId>,
}

/// 2. Everything else; from here on refusals go to the client.
///
/// # Errors
/// [`Refused::Callback`].
pub fn validate(
    params: &Params,
    client: Client,
    callback: Callback,
    around: &Surroundings<'_>,
) -> Result<Request, Refused> {
    match read(params, &client, &callback, around) {
        Ok(read) => Ok(Request {
            client,
            callback,
            ..read
        }),
        Err(error) => Err(Refused::Callback(Box::new(callback), error)),
    }
}

fn read(
    params: &Params,
    client: &Client,
    callback: &Callback,
    around: &Surroundings<'_>,
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
        return Err(Error::invalid_request(rejected("state")));
    }
    let nonce = params.one("nonce")?.map(str::to_owned);
    if nonce
        .as_ref()
        .is_some_and(|nonce| nonce.chars().count() > NONCE_CHARS)
    {
        return Err(Error::invalid_request(rejected("nonce")));
    }
    essential_acr(params)?;
    let hinted = match params.one("id_token_hint")? {
        None => None,
        Some(hint) => Some(
            (around.hint)(hint).ok_or_else(|| Error::invalid_request(rejected("id_token_hint")))?,
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
        None => return Err(Error::invalid_request(rejected("response_type"))),
        Some("code") => {}
        Some(_) => return Err(Error::unsupported_response_type(rejected("response_type"))),
    }
    match params.one("response_mode")? {
        None | Some("query" | "form_post") => Ok(()),
        Some(_) => Err(Error::invalid_request(rejected("response_mode"))),
    }
}

fn requested_scope(params: &Params) -> Result<Scope, Error> {
    let refuse = || Error::invalid_scope(rejected("scope"));
    let text = match params.one("scope") {
        Ok(text) => text.ok_or_else(refuse)?,
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
    let claims =
        ClaimsRequest::parse(text).map_err(|_| Error::invalid_request(rejected("json")))?;
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
            _ => return Err(Error::invalid_request(rejected("prompt"))),
        }
    }
    if prompt.none && (prompt.login || prompt.consent) {
        return Err(Error::invalid_request(rejected("prompt")));
    }
    Ok(prompt)
}

fn max_age(text: Option<&str>) -> Result<Option<Duration>, Error> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(seconds) if digits => Ok(Some(Duration::from_secs(seconds.into()))),
        _ => Err(Error::invalid_request(rejected("max_age"))),
    }
}

/// 3. What the request needs, from what is stored. Pure: the same state gives the same step.
pub fn next(
    request: &Request,
    begun: Option<&Authorization>,
    login: Option<&Login>,
    consent: Option<&Consent>,
    now: Timestamp,
) -> Step {
    let own = begun
        .filter(|begun| begun.sid.is_some() && begun.sid.as_ref() == login.map(|login| &login.sid));
    if begun.is_some_and(|begun| begun.stage == Stage::Denied) {
        return Step::Refuse(Error::access_denied(Detail::new(
            "consent.denied",
            "denied",
        )));
    }
    let Some(login) = login.filter(|login| own.is_some() || !must_sign_in(request, login, now))
    else {
        return unless_silent(
            request,
            Step::Login,
            Error::login_required(rejected("login")),
        );
    };
    if request
        .hinted
        .as_ref()
        .is_some_and(|hinted| *hinted != login.user_id)
    {
        let other = Error::login_required(rejected("other_user"));
        // Whoever just signed in is somebody else: asking once more would not change that.
        return if own.is_some() {
            Step::Refuse(other)
        } else {
            unless_silent(request, Step::Login, other)
        };
    }
    if let Some(own) = own.filter(|own| own.stage == Stage::Consented) {
        let scope = own.scope.clone().unwrap_or_default();
        return Step::Answer {
            scope,
            consent_id: consent.map(|consent| consent.id.clone()),
        };
    }
    if must_ask(request, consent, now) {
        return unless_silent(
            request,
            Step::Consent,
            Error::consent_required(rejected("consent")),
        );
    }
    Step::Answer {
        scope: request.scope.clone(),
        consent_id: consent
            .filter(|_| request.client.consent != ConsentPolicy::Skip)
            .map(|consent| consent.id.clone()),
    }
}

fn unless_silent(request: &Request, step: Step, error: Error) -> Step {
    if request.prompt.none {
        Step::Refuse(error)
    } else {
        step
    }
}

/// `prompt=login` and `max_age` (OIDC Core §3.1.2.1).
fn must_sign_in(request: &Request, login: &Login, now: Timestamp) -> bool {
    request.prompt.login
        || request
            .max_age
            .is_some_and(|limit| limit.is_zero() || now.since(login.auth_time) > limit)
}

fn must_ask(request: &Request, consent: Option<&Consent>, now: Timestamp) -> bool {
    let client = &request.client;
    let remembered = consent.is_some_and(|consent| {
        now < consent.expires_at
            && consent.client_shape.matches(&client.shape())
            && Scope::parse(&consent.scope).is_ok_and(|granted| request.scope.is_within(&granted))
    });
    let anyone_can_answer =
        !client.is_confidential() && redirect_uri::is_native(request.callback.uri());
    request.prompt.consent
        || match client.consent {
            ConsentPolicy::Skip => false,
            ConsentPolicy::Always => true,
            ConsentPolicy::Remember => anyone_can_answer || !remembered,
        }
}
