//! The authorization code grant: RFC 6749 §4.1.3, §10.5.

use std::borrow::Cow;
use std::time::Duration;

use oxide_auth::code_grant::accesstoken as machine;
use oxide_auth::code_grant::extensions::Pkce;
use oxide_auth::primitives::grant as primitive;

use super::Grant;
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::id::{ClientId, GrantId};
use crate::oauth::client::{Client, GrantType};
use crate::oauth::client_auth::AuthenticatedClient;
use crate::oauth::error::{Description, Detail, Error};
use crate::oauth::issue::{PendingTokens, TokenGrant, TokenIssuer};
use crate::oauth::ledger::{Ledger, StorageError};
use crate::oauth::pkce::{self, Challenge};
use crate::oauth::redirect_uri;
use crate::oauth::request::params::Params;
use crate::oauth::token::refuse;
use crate::secret::{Hash, Secret};
use crate::time::Timestamp;

/// A row of `codes`.
#[derive(Clone, Debug)]
pub struct Code {
    /// SHA-256 of the code.
    pub hash: Hash,
    /// What it buys.
    pub grant_id: GrantId,
    /// Who may redeem it.
    pub client_id: ClientId,
    /// Where it was sent.
    pub redirect_uri: String,
    /// Whether the authorization request named it.
    pub redirect_uri_sent: bool,
    /// PKCE.
    pub challenge: Option<Challenge>,
    /// For the ID token.
    pub nonce: Option<String>,
    /// Its end.
    pub expires_at: Timestamp,
}

impl Code {
    /// A fresh code that buys `grant`, and what to remember of it.
    pub fn issue(
        grant: &Grant,
        request: &crate::oauth::request::authorize::Request,
        life: Duration,
        entropy: &crate::secret::Entropy,
        now: Timestamp,
    ) -> (Secret, Self) {
        let secret = Secret::code(entropy);
        let code = Self {
            hash: secret.hash(),
            grant_id: grant.id.clone(),
            client_id: grant.client_id.clone(),
            redirect_uri: request.callback.uri().to_owned(),
            redirect_uri_sent: request.callback.sent(),
            challenge: request.challenge.clone(),
            nonce: request.nonce.clone(),
            expires_at: now + life,
        };
        (secret, code)
    }
}

/// What the client brought.
#[derive(Clone, Debug)]
pub struct CodeRequest {
    code: Secret,
    redirect_uri: Option<String>,
    verifier: Option<String>,
}

impl CodeRequest {
    /// Parses the form of §4.1.3.
    ///
    /// # Errors
    /// `invalid_request`.
    pub fn parse(form: &Params) -> Result<Self, Error> {
        let code = form.one("code").map_err(refuse)?;
        let code = code.ok_or_else(|| Error::invalid_request(Redeem::Missing))?;
        Ok(Self {
            code: Secret::from_text(code),
            redirect_uri: form.one("redirect_uri").map_err(refuse)?.map(str::to_owned),
            verifier: form
                .one("code_verifier")
                .map_err(refuse)?
                .map(str::to_owned),
        })
    }
}

/// Why a code buys nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redeem {
    /// None was sent.
    Missing,
    /// Something else of ours, or nothing of ours at all: codes have their own prefix.
    Kind,
    /// Nobody was given this code.
    Unknown,
    /// It was used before, and whoever comes now is its client: the grant ends.
    Replayed,
    /// It was used before; who comes now has not shown to be its client.
    ReplayedByStranger,
    /// Another client's.
    OtherClient,
    /// Another redirect URI than in the authorization request.
    RedirectUri,
    /// Too late.
    Expired,
    /// The verifier does not fit.
    Pkce,
    /// The grant ended, or what it rests on did.
    GrantEnded,
    /// The client is no longer registered for what was granted.
    Scope,
}

impl From<Redeem> for Detail {
    fn from(redeem: Redeem) -> Self {
        match redeem {
            Redeem::Missing => Detail::new("token.rejected", "code").described(Description::CODE),
            Redeem::Kind => Detail::new("token.rejected", "kind"),
            Redeem::Unknown => Detail::new("token.rejected", "unknown"),
            Redeem::Replayed => Detail::high("code.replay", "replayed"),
            Redeem::ReplayedByStranger => Detail::new("token.rejected", "replayed_by_stranger"),
            Redeem::OtherClient => Detail::high("code.client_mismatch", "other_client"),
            Redeem::RedirectUri => Detail::new("token.rejected", "redirect_uri"),
            Redeem::Expired => Detail::new("token.rejected", "expired"),
            Redeem::Pkce => Detail::new("token.rejected", "pkce"),
            Redeem::GrantEnded => Detail::new("token.rejected", "grant_ended"),
            Redeem::Scope => Detail::new("token.rejected", "scope"),
        }
    }
}

/// Redeems a code, once. Whoever presents it uses it up.
///
/// # Errors
/// [`StorageError`]; a refusal is an `Ok(Err(…))` and commits.
pub fn redeem(
    presented: &CodeRequest,
    resource: Option<&str>,
    proven: &AuthenticatedClient,
    ledger: &mut dyn Ledger,
    mint: TokenIssuer<'_>,
) -> Result<Result<PendingTokens, Error>, StorageError> {
    let client = proven.client();
    // 1. Taken in time, by one conditional statement; the loser of a race sees a replay.
    let Some(code) = ledger.take_code(&presented.code.hash(), mint.now)? else {
        return Ok(Err(refuse_replay(presented, client, ledger, mint.now)?));
    };
    // 2. Bound to client, redirect URI and PKCE challenge; oxide-auth's machine has the order.
    if let Err(reason) = check(presented, &code, client) {
        return Ok(Err(Error::invalid_grant(reason)));
    }
    // 3. The grant and all that it rests on still stand.
    let Some(grant) = ledger.find_active_grant(&code.grant_id, mint.now)? else {
        return Ok(Err(Error::invalid_grant(Redeem::GrantEnded)));
    };
    // 4. What of it the client is still registered for, for one audience: the resource asked for, or the
    //    grant's default.
    let Some(allowed) = grant.within(client, proven.resources()) else {
        return Ok(Err(Error::invalid_grant(Redeem::Scope)));
    };
    let target = match allowed.audience(resource) {
        Ok(target) => target,
        Err(error) => return Ok(Err(error)),
    };
    // 5. It is a refresh-token family from now on.
    let is_family = client.may_use(GrantType::RefreshToken);
    if is_family {
        ledger.revoke_surplus_grants(&grant, mint.now)?;
    }
    Ok(Ok(mint.for_grant(TokenGrant {
        grant: &grant,
        scope: &allowed.scope,
        resource: target,
        nonce: code.nonce,
        id_alg: client.id_token_alg,
        generation: is_family.then_some(grant.generation),
    })))
}

/// RFC 6749 §4.1.2, §10.5: a code used twice ends what it bought, when its client itself comes
/// again: authenticated, or as a public client with the right verifier.
fn refuse_replay(
    presented: &CodeRequest,
    client: &Client,
    ledger: &mut dyn Ledger,
    now: Timestamp,
) -> Result<Error, StorageError> {
    let hash = presented.code.hash();
    let Some(code) = ledger.find_used_code(&hash)? else {
        // The same statements for all of these: time does not tell an old code from no code.
        let known = ledger.has_code(&hash)?;
        return Ok(Error::invalid_grant(match presented.code.is_code() {
            false => Redeem::Kind,
            true if known => Redeem::Expired,
            true => Redeem::Unknown,
        }));
    };
    let verified = pkce::verifies(
        code.challenge.as_ref().and_then(Challenge::extension),
        presented.verifier.as_deref(),
    );
    if code.client_id != client.id || !(client.is_confidential() || verified) {
        return Ok(Error::invalid_grant(Redeem::ReplayedByStranger));
    }
    let actor = Actor::Client(client.id.clone());
    if ledger.revoke_grant(&code.grant_id, &RevocationReason::CodeReplay, &actor, now)? {
        ledger.put_audit(&Event {
            at: now,
            name: Name::CodeReplay,
            actor,
            target: Target::Grant(code.grant_id.clone()),
            reason: None,
            detail: serde_json::json!({}),
        })?;
    }
    Ok(Error::invalid_grant(Redeem::Replayed))
}

/// Drives oxide-auth's access-token machine over a code that is taken.
fn check(presented: &CodeRequest, code: &Code, client: &Client) -> Result<(), Redeem> {
    if code.client_id != client.id {
        return Err(Redeem::OtherClient);
    }
    // The client may have lost the URI since the code was sent there.
    if !redirect_uri::is_registered(client, &code.redirect_uri) {
        return Err(Redeem::RedirectUri);
    }
    // §4.1.3: required if the authorization request had it, and then identical.
    let redirect_uri = match (&presented.redirect_uri, code.redirect_uri_sent) {
        (Some(uri), _) if *uri == code.redirect_uri => uri,
        (None, false) => &code.redirect_uri,
        _ => return Err(Redeem::RedirectUri),
    };
    let request = Asked {
        presented,
        client,
        redirect_uri,
    };
    let mut token = machine::AccessToken::new(&request);
    let mut input = machine::Input::None;
    loop {
        input = match token.advance(input) {
            machine::Output::Authenticate { .. } => machine::Input::Authenticated,
            machine::Output::Recover { .. } => {
                machine::Input::Recovered(Some(Box::new(recovered(code)?)))
            }
            machine::Output::Extend { extensions } => {
                let bound = extensions.remove(&Pkce::required());
                if !pkce::verifies(bound, presented.verifier.as_deref()) {
                    return Err(Redeem::Pkce);
                }
                machine::Input::Extended {
                    access_extensions: std::mem::take(extensions),
                }
            }
            machine::Output::Issue { .. } | machine::Output::Ok(_) => return Ok(()),
            machine::Output::Err(_) => return Err(Redeem::RedirectUri),
        };
    }
}

/// The grant as the machine wants it. It reads the system clock; the code was taken in time by the
/// request's own instant, so its copy never expires.
fn recovered(code: &Code) -> Result<primitive::Grant, Redeem> {
    let mut extensions = primitive::Extensions::new();
    if let Some(challenge) = code.challenge.as_ref().and_then(Challenge::extension) {
        extensions.set(&Pkce::required(), challenge);
    }
    Ok(primitive::Grant {
        owner_id: String::new(),
        client_id: code.client_id.as_str().to_owned(),
        scope: crate::oauth::request::scope::Scope::default().set(),
        redirect_uri: code.redirect_uri.parse().map_err(|_| Redeem::RedirectUri)?,
        until: chrono::DateTime::<chrono::Utc>::MAX_UTC,
        extensions,
    })
}

struct Asked<'a> {
    presented: &'a CodeRequest,
    client: &'a Client,
    redirect_uri: &'a str,
}

impl machine::Request for Asked<'_> {
    fn valid(&self) -> bool {
        true
    }
    fn code(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(self.presented.code.expose()))
    }
    fn authorization(&self) -> machine::Authorization<'_> {
        // The client is proven; the machine gets its identity alone.
        machine::Authorization::Username(Cow::Borrowed(self.client.id.as_str()))
    }
    fn client_id(&self) -> Option<Cow<'_, str>> {
        None
    }
    fn redirect_uri(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(self.redirect_uri))
    }
    fn grant_type(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed("authorization_code"))
    }
    fn extension(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }
}
