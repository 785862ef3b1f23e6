//! The authorization code grant: RFC 6749 §4.1.3, §10.5.

use std::borrow::Cow;

use oxide_auth::code_grant::accesstoken as machine;
use oxide_auth::code_grant::extensions::Pkce;
use oxide_auth::primitives::grant as primitive;

use super::request::{GrantContext, GrantRequest};
use crate::audit::{Actor, Event, Name, RevocationReason, Target};
use crate::oauth::client::Client;
use crate::oauth::code::Code;
use crate::oauth::error::{Cause, Description, Error};
use crate::oauth::grant::GrantType;
use crate::oauth::issue::{PendingTokens, TokenGrant};
use crate::oauth::ledger::{Ledger, Outcome, StorageError};
use crate::oauth::macros::details;
use crate::oauth::pkce::{self, Challenge};
use crate::oauth::redirect_uri;
use crate::oauth::request::params::{Params, Problem};
use crate::oauth::request::scope::Scope;
use crate::secret::Secret;
use crate::time::Timestamp;

/// The parameters of the grant.
#[derive(Clone, Debug)]
pub struct CodeRequest {
    code: Secret,
    redirect_uri: Option<String>,
    verifier: Option<String>,
}

details! {
    /// Why a code is not exchanged for tokens.
    enum Rejection {
        /// The request contains no code.
        Missing => Detail::new("token.rejected", "code").described(Description::CODE),
        /// The value does not have the prefix of codes.
        Kind => Detail::new("token.rejected", "kind"),
        /// This server did not issue the code.
        Unknown => Detail::new("token.rejected", "unknown"),
        /// The code was used before, and its client itself sent it again: the grant is revoked.
        Replayed => Detail::high("code.replay", "replayed"),
        /// The code was used before, and the caller did not prove to be its client.
        ReplayedByStranger => Detail::new("token.rejected", "replayed_by_stranger"),
        /// The code was issued to another client.
        OtherClient => Detail::high("code.client_mismatch", "other_client"),
        /// The redirect URI is not the one of the authorization request.
        RedirectUri => Detail::new("token.rejected", "redirect_uri"),
        /// The code expired.
        Expired => Detail::new("token.rejected", "expired"),
        /// The code verifier does not match the challenge.
        Pkce => Detail::new("token.rejected", "pkce"),
        /// The grant, or what it depends on, was revoked or expired.
        GrantInactive =>
            Detail::new("token.rejected", "grant_ended").caused_by(Cause::GrantInactive),
        /// The client is no longer registered for the granted scope.
        Scope => Detail::new("token.rejected", "scope"),
    }
}

impl GrantRequest for CodeRequest {
    /// Parses the form of §4.1.3.
    fn parse(form: &Params) -> Result<Self, Error> {
        let one = |name| form.one(name).map_err(Problem::in_token_request);
        let code = one("code")?.ok_or_else(|| Error::invalid_request(Rejection::Missing))?;
        Ok(Self {
            code: Secret::from_text(code),
            redirect_uri: one("redirect_uri")?.map(str::to_owned),
            verifier: one("code_verifier")?.map(str::to_owned),
        })
    }

    /// Exchanges a code for tokens. Every attempt consumes the code, even one by another client.
    fn issue(&self, context: &GrantContext<'_>, ledger: &mut dyn Ledger) -> Outcome<PendingTokens> {
        let (client, issuer) = (context.client.client(), &context.issuer);
        // 1. One conditional statement consumes the code. A request that loses a race is treated as a replay.
        let Some(code) = ledger.take_code(&self.code.hash(), issuer.now)? else {
            return Ok(Err(reject_replay(self, client, ledger, issuer.now)?));
        };
        // 2. Client, redirect URI and PKCE challenge, in the order of oxide-auth.
        if let Err(reason) = check(self, &code, client) {
            let error = Error::invalid_grant(reason);
            return Ok(Err(match reason {
                Rejection::RedirectUri => {
                    let sent = self.redirect_uri.as_deref().unwrap_or_default();
                    let authorized = redirect_uri::without_query(&code.redirect_uri);
                    error.comparing(redirect_uri::without_query(sent), authorized)
                }
                _ => error,
            }));
        }
        // 3. The grant, its session and its consent are active.
        let Some(grant) = ledger.find_active_grant(&code.grant_id, issuer.now)? else {
            return Ok(Err(Error::invalid_grant(Rejection::GrantInactive)));
        };
        // 4. The part of the grant for which the client is still registered, and one audience: the
        //    requested resource, or the default of the grant.
        let Some(effective) = grant.within(&client.scopes, context.client.resources()) else {
            return Ok(Err(Error::invalid_grant(Rejection::Scope)));
        };
        let resource = match effective.audience(context.resource) {
            Ok(resource) => resource,
            Err(error) => return Ok(Err(error)),
        };
        // 5. From now on the grant has refresh tokens, if the client uses them.
        let is_refreshable = client.may_use(GrantType::RefreshToken);
        if is_refreshable {
            ledger.revoke_surplus_grants(&grant, issuer.now)?;
        }
        Ok(Ok(issuer.for_grant(TokenGrant {
            grant: &grant,
            scope: &effective.scope,
            resource,
            nonce: code.nonce,
            id_alg: client.id_token_alg,
            generation: is_refreshable.then_some(grant.generation),
        })))
    }
}

/// Rejects a code that could not be consumed. If the client of a used code sends it again, authenticated or
/// as a public client with the right code verifier, the grant is revoked (RFC 6749 §4.1.2, §10.5).
fn reject_replay(
    request: &CodeRequest,
    client: &Client,
    ledger: &mut dyn Ledger,
    now: Timestamp,
) -> Result<Error, StorageError> {
    let hash = request.code.hash();
    let Some(code) = ledger.find_used_code(&hash)? else {
        // All three cases run the same statements, so that the response time does not reveal whether a
        // code existed.
        let exists = ledger.has_code(&hash)?;
        return Ok(Error::invalid_grant(match request.code.is_code() {
            false => Rejection::Kind,
            true if exists => Rejection::Expired,
            true => Rejection::Unknown,
        }));
    };
    let verified = pkce::verifies(
        code.challenge.as_ref().and_then(Challenge::extension),
        request.verifier.as_deref(),
    );
    if code.client_id != client.id || !(client.is_confidential() || verified) {
        return Ok(Error::invalid_grant(Rejection::ReplayedByStranger));
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
    Ok(Error::invalid_grant(Rejection::Replayed))
}

/// Drives oxide-auth's access-token machine over a consumed code.
fn check(request: &CodeRequest, code: &Code, client: &Client) -> Result<(), Rejection> {
    if code.client_id != client.id {
        return Err(Rejection::OtherClient);
    }
    // The URI may have been removed from the registration after the code was issued.
    if !redirect_uri::is_registered(&client.redirect_uris, &code.redirect_uri) {
        return Err(Rejection::RedirectUri);
    }
    // §4.1.3: required if the authorization request contained it, and then identical.
    let redirect_uri = match (&request.redirect_uri, code.redirect_uri_sent) {
        (Some(uri), _) if *uri == code.redirect_uri => uri,
        (None, false) => &code.redirect_uri,
        _ => return Err(Rejection::RedirectUri),
    };
    let machine_request = MachineRequest {
        request,
        client,
        redirect_uri,
    };
    let mut token = machine::AccessToken::new(&machine_request);
    let mut input = machine::Input::None;
    loop {
        input = match token.advance(input) {
            machine::Output::Authenticate { .. } => machine::Input::Authenticated,
            machine::Output::Recover { .. } => {
                machine::Input::Recovered(Some(Box::new(recovered(code)?)))
            }
            machine::Output::Extend { extensions } => {
                let bound = extensions.remove(&Pkce::required());
                if !pkce::verifies(bound, request.verifier.as_deref()) {
                    return Err(Rejection::Pkce);
                }
                machine::Input::Extended {
                    access_extensions: std::mem::take(extensions),
                }
            }
            machine::Output::Issue { .. } | machine::Output::Ok(_) => return Ok(()),
            machine::Output::Err(_) => return Err(Rejection::RedirectUri),
        };
    }
}

/// Returns the grant in oxide-auth's form. The machine compares its expiry with the system clock, but the
/// code was already consumed in time by the clock of the request, so this copy never expires.
fn recovered(code: &Code) -> Result<primitive::Grant, Rejection> {
    let mut extensions = primitive::Extensions::new();
    if let Some(challenge) = code.challenge.as_ref().and_then(Challenge::extension) {
        extensions.set(&Pkce::required(), challenge);
    }
    Ok(primitive::Grant {
        owner_id: String::new(),
        client_id: code.client_id.as_str().to_owned(),
        scope: Scope::default().set(),
        redirect_uri: code
            .redirect_uri
            .parse()
            .map_err(|_| Rejection::RedirectUri)?,
        until: chrono::DateTime::<chrono::Utc>::MAX_UTC,
        extensions,
    })
}

struct MachineRequest<'a> {
    request: &'a CodeRequest,
    client: &'a Client,
    redirect_uri: &'a str,
}

impl machine::Request for MachineRequest<'_> {
    fn valid(&self) -> bool {
        true
    }
    fn code(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(self.request.code.expose()))
    }
    fn authorization(&self) -> machine::Authorization<'_> {
        // The client is already authenticated, so the machine receives only its id.
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
