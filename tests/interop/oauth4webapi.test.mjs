// npm oauth4webapi, which leaves every step to the application and hides nothing.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { createRemoteJWKSet, jwtVerify } from 'jose'
import * as oauth from 'oauth4webapi'

import { Person, inputs } from './person.mjs'
import { AUDIENCE, serve } from './portcullis.mjs'

const CALLBACK = 'http://127.0.0.1:5555/callback'
/** Plain http is for the loopback issuer of this test. */
const INSECURE = { [oauth.allowInsecureRequests]: true }

let server
before(async () => {
  server = await serve()
})
after(() => server?.stop())

async function discover(algorithm = 'oidc') {
  const issuer = new URL(server.issuer)
  const response = await oauth.discoveryRequest(issuer, { algorithm, ...INSECURE })
  return oauth.processDiscoveryResponse(issuer, response)
}

/** A request as this library leaves it to the application to write. */
async function begin(as, client, changed = {}) {
  const verifier = oauth.generateRandomCodeVerifier()
  const state = oauth.generateRandomState()
  const nonce = oauth.generateRandomNonce()
  const url = new URL(as.authorization_endpoint)
  url.search = new URLSearchParams({
    client_id: client.client_id,
    redirect_uri: CALLBACK,
    response_type: 'code',
    scope: 'openid orders:read',
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    state,
    nonce,
    ...changed,
  })
  return { url, verifier, state, nonce }
}

async function redeem(as, client, authentication, parameters, { verifier, nonce }) {
  const response = await oauth.authorizationCodeGrantRequest(as, client, authentication, parameters, CALLBACK, verifier, INSECURE)
  const options = { expectedNonce: nonce, requireIdToken: true }
  const tokens = await oauth.processAuthorizationCodeResponse(as, client, response, options)
  await oauth.validateApplicationLevelSignature(as, response, INSECURE)
  return tokens
}

async function register(...options) {
  const registered = await server.client('--name', 'Corner Shop', '--redirect-uri', CALLBACK, ...options)
  return [{ client_id: registered.client_id }, registered.client_secret]
}

test('both discovery documents are there and say the same', async () => {
  assert.deepEqual(await discover('oidc'), await discover('oauth2'))
})

test('the code flow, each step checked: discovery to verified tokens', async () => {
  const as = await discover()
  assert.equal(as.authorization_response_iss_parameter_supported, true)
  const [client, secret] = await register()
  const started = await begin(as, client)
  const answer = await new Person(server.issuer).answers(started.url)
  const parameters = oauth.validateAuthResponse(as, client, answer.location, started.state)
  const tokens = await redeem(as, client, oauth.ClientSecretBasic(secret), parameters, started)
  assert.equal(oauth.getValidatedIdTokenClaims(tokens).sub, server.sub)

  // What an API does: this library's own check, and jose's.
  const call = new Request('http://127.0.0.1/orders', { headers: { authorization: `Bearer ${tokens.access_token}` } })
  const seen = await oauth.validateJwtAccessToken(as, call, AUDIENCE, { requireDPoP: false, ...INSECURE })
  assert.equal(seen.sub, server.sub)
  const options = { issuer: as.issuer, audience: AUDIENCE, typ: 'at+jwt', algorithms: ['ES256'] }
  const { payload } = await jwtVerify(tokens.access_token, createRemoteJWKSet(new URL(as.jwks_uri)), options)
  assert.equal(payload.jti, seen.jti)
})

test('the answer as a self-submitting form (response_mode=form_post)', async () => {
  const as = await discover()
  const [client, secret] = await register()
  const started = await begin(as, client, { response_mode: 'form_post' })
  const page = await new Person(server.issuer).answers(started.url)
  assert.ok(page.body.includes(`action="${CALLBACK}"`), page.body)
  const form = new URLSearchParams(['code', 'state', 'iss'].map((name) => [name, inputs(page.body, name)[0]]))
  const parameters = oauth.validateAuthResponse(as, client, form, started.state)
  await redeem(as, client, oauth.ClientSecretBasic(secret), parameters, started)
})

test('a public client', async () => {
  const as = await discover()
  const [client] = await register('--public')
  const started = await begin(as, client)
  const answer = await new Person(server.issuer).answers(started.url)
  const parameters = oauth.validateAuthResponse(as, client, answer.location, started.state)
  await redeem(as, client, oauth.None(), parameters, started)
})

test('an answer of another issuer is not accepted (RFC 9207)', async () => {
  const as = await discover()
  const [client] = await register()
  const started = await begin(as, client)
  const answer = await new Person(server.issuer).answers(started.url)
  const other = { ...as, issuer: 'https://honest.example' }
  assert.throws(() => oauth.validateAuthResponse(other, client, answer.location, started.state), /"iss"/)
})

test('another code_verifier is invalid_grant', async () => {
  const as = await discover()
  const [client, secret] = await register('--auth-method', 'client_secret_post')
  const started = await begin(as, client)
  const answer = await new Person(server.issuer).answers(started.url)
  const parameters = oauth.validateAuthResponse(as, client, answer.location, started.state)
  const guessed = { ...started, verifier: oauth.generateRandomCodeVerifier() }
  const attempt = redeem(as, client, oauth.ClientSecretPost(secret), parameters, guessed)
  await assert.rejects(attempt, { name: 'ResponseBodyError', error: 'invalid_grant', status: 400 })
})

test('tokens live and die: userinfo, refresh, revoke, introspect', async () => {
  const as = await discover()
  const [client, secret] = await register()
  const basic = oauth.ClientSecretBasic(secret)
  const started = await begin(as, client, { scope: 'openid profile email orders:read' })
  const answer = await new Person(server.issuer).answers(started.url)
  const tokens = await redeem(as, client, basic, oauth.validateAuthResponse(as, client, answer.location, started.state), started)

  const userinfo = (token) => oauth.userInfoRequest(as, client, token, INSECURE)
  const person = await oauth.processUserInfoResponse(as, client, server.sub, await userinfo(tokens.access_token))
  assert.equal(person.preferred_username, 'alice')

  const refreshed = await oauth.refreshTokenGrantRequest(as, client, basic, tokens.refresh_token, INSECURE)
  const next = await oauth.processRefreshTokenResponse(as, client, refreshed)
  await oauth.validateApplicationLevelSignature(as, refreshed, INSECURE)
  assert.equal(oauth.getValidatedIdTokenClaims(next).sub, server.sub)
  assert.notEqual(next.refresh_token, tokens.refresh_token)

  const registered = await server.client('--name', 'Orders API', '--serves', AUDIENCE, '--grant-type', 'client_credentials')
  const api = { client_id: registered.client_id }
  const introspect = async (token) => {
    const authentication = oauth.ClientSecretBasic(registered.client_secret)
    return oauth.processIntrospectionResponse(as, api, await oauth.introspectionRequest(as, api, authentication, token, INSECURE))
  }
  const alive = await introspect(next.access_token)
  assert.deepEqual([alive.active, alive.sub, alive.token_type], [true, server.sub, 'Bearer'])

  const revoke = async (token) =>
    oauth.processRevocationResponse(await oauth.revocationRequest(as, client, basic, token, INSECURE))
  await revoke(next.refresh_token)
  assert.deepEqual(await introspect(next.access_token), { active: false })
  assert.deepEqual(await introspect(tokens.access_token), { active: false })
  assert.equal((await userinfo(next.access_token)).status, 401)
  const late = await oauth.refreshTokenGrantRequest(as, client, basic, next.refresh_token, INSECURE)
  await assert.rejects(oauth.processRefreshTokenResponse(as, client, late), { name: 'ResponseBodyError', error: 'invalid_grant' })
  await revoke('something else')
})
