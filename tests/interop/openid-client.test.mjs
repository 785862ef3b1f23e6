// npm openid-client, the certified relying party, unmodified.

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { after, before, test } from 'node:test'

import { createRemoteJWKSet, jwtVerify } from 'jose'
import * as client from 'openid-client'

import { Person } from './person.mjs'
import { AUDIENCE, serve } from './portcullis.mjs'

const CALLBACK = 'http://127.0.0.1:5555/callback'

let server
before(async () => {
  server = await serve()
})
after(() => server?.stop())

/** A relying party by discovery alone. Plain http is for the loopback issuer of this test. */
async function discover(registered, metadata, authentication) {
  const options = { execute: [client.allowInsecureRequests, client.enableNonRepudiationChecks] }
  return client.discovery(new URL(server.issuer), registered.client_id, metadata, authentication, options)
}

/** Begins a request: its address, and what the client keeps to check the answer. */
async function begin(config, changed = {}) {
  const checks = {
    pkceCodeVerifier: client.randomPKCECodeVerifier(),
    expectedState: client.randomState(),
    expectedNonce: client.randomNonce(),
  }
  const url = client.buildAuthorizationUrl(config, {
    redirect_uri: CALLBACK,
    scope: 'openid orders:read',
    code_challenge: await client.calculatePKCECodeChallenge(checks.pkceCodeVerifier),
    code_challenge_method: 'S256',
    state: checks.expectedState,
    nonce: checks.expectedNonce,
    ...changed,
  })
  return { url, checks }
}

/** What an API does with the access token (RFC 9068 §4). */
async function verifyAtApi(token, config) {
  const keys = createRemoteJWKSet(new URL(config.serverMetadata().jwks_uri))
  const options = { issuer: server.issuer, audience: AUDIENCE, typ: 'at+jwt', algorithms: ['ES256'] }
  return (await jwtVerify(token, keys, options)).payload
}

async function register(...options) {
  return server.client('--name', 'Corner Shop', '--redirect-uri', CALLBACK, ...options)
}

test('a confidential client: discovery to verified tokens', async () => {
  const registered = await register()
  const basic = client.ClientSecretBasic(registered.client_secret)
  const config = await discover(registered, { client_secret: registered.client_secret }, basic)
  assert.equal(config.serverMetadata().issuer, server.issuer)

  const { url, checks } = await begin(config)
  const answer = await new Person(server.issuer).answers(url)
  assert.equal(answer.location.searchParams.get('iss'), server.issuer)

  const tokens = await client.authorizationCodeGrant(config, answer.location, checks)
  assert.equal(tokens.token_type, 'bearer')
  assert.ok(tokens.expiresIn() > 0)
  const person = tokens.claims()
  assert.equal(person.sub, server.sub)
  assert.equal(person.nonce, checks.expectedNonce)
  assert.equal(JSON.parse(atob(tokens.id_token.split('.')[0])).alg, 'RS256')

  const claims = await verifyAtApi(tokens.access_token, config)
  assert.equal(claims.sub, server.sub)
  assert.equal(claims.client_id, registered.client_id)
  assert.deepEqual(claims.scope.split(' ').sort(), ['openid', 'orders:read'])
})

test('client_secret_post, and ID tokens with ES256', async () => {
  const registered = await register('--auth-method', 'client_secret_post', '--id-token-alg', 'ES256')
  const metadata = { client_secret: registered.client_secret, id_token_signed_response_alg: 'ES256' }
  const config = await discover(registered, metadata, client.ClientSecretPost(registered.client_secret))
  const { url, checks } = await begin(config)
  const answer = await new Person(server.issuer).answers(url)
  const tokens = await client.authorizationCodeGrant(config, answer.location, checks)
  assert.equal(tokens.claims().sub, server.sub)
  assert.equal(JSON.parse(atob(tokens.id_token.split('.')[0])).alg, 'ES256')
})

test('a public client answered on a loopback port of the moment', async () => {
  // Registered without a port, as a native app has to (RFC 8252 §7.3).
  const registered = await server.client('--name', 'Pocket App', '--public', '--redirect-uri', 'http://127.0.0.1/cb')
  const config = await discover(registered, undefined, client.None())
  const arrived = []
  const app = createServer((request, response) => {
    arrived.push(request.url)
    response.end('You can close this window.')
  })
  await new Promise((resolve) => app.listen(0, '127.0.0.1', resolve))
  try {
    const here = `http://127.0.0.1:${app.address().port}`
    const { url, checks } = await begin(config, { redirect_uri: `${here}/cb` })
    const person = new Person(server.issuer)
    const page = await person.open((await person.answers(url)).location)
    assert.equal(page.body, 'You can close this window.')
    const tokens = await client.authorizationCodeGrant(config, new URL(arrived[0], here), checks)
    assert.equal(tokens.claims().sub, server.sub)
    await verifyAtApi(tokens.access_token, config)
  } finally {
    app.close()
  }
})

test('a client that asked another issuer aborts, and our code goes nowhere (RFC 9207)', async () => {
  const registered = await register()
  const ours = await discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
  const other = { ...ours.serverMetadata(), issuer: 'https://honest.example' }
  const config = new client.Configuration(other, registered.client_id, undefined, client.ClientSecretBasic('x'))
  config[client.customFetch] = () => assert.fail('the client sent the code somewhere')
  const { url, checks } = await begin(ours)
  const answer = await new Person(server.issuer).answers(url)
  await assert.rejects(client.authorizationCodeGrant(config, answer.location, checks), (error) => {
    assert.match(`${error.message} ${error.cause?.message}`, /"iss" \(issuer\)/)
    return true
  })
})

test('another code_verifier is invalid_grant, and so is a code for the second time', async () => {
  const registered = await register()
  const config = await discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
  const person = new Person(server.issuer)
  const invalid = { name: 'ResponseBodyError', error: 'invalid_grant', status: 400 }

  const first = await begin(config)
  const stolen = await person.answers(first.url)
  const guessed = { ...first.checks, pkceCodeVerifier: client.randomPKCECodeVerifier() }
  await assert.rejects(client.authorizationCodeGrant(config, stolen.location, guessed), invalid)

  const second = await begin(config)
  const answer = await person.answers(second.url)
  await client.authorizationCodeGrant(config, answer.location, second.checks)
  await assert.rejects(client.authorizationCodeGrant(config, answer.location, second.checks), invalid)
})

test('a wrong secret is invalid_client', async () => {
  const registered = await register()
  const config = await discover(registered, undefined, client.ClientSecretBasic('guessed'))
  const { url, checks } = await begin(config)
  const answer = await new Person(server.issuer).answers(url)
  const attempt = client.authorizationCodeGrant(config, answer.location, checks)
  await assert.rejects(attempt, { name: 'WWWAuthenticateChallengeError', status: 401 })
})

test('what the person or the server refuses reaches the client as an error', async () => {
  const registered = await register()
  const config = await discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
  const refused = (error) => ({ name: 'AuthorizationResponseError', error })
  const person = new Person(server.issuer)

  const silent = await begin(config, { prompt: 'none' })
  const signedOut = await person.answers(silent.url)
  await assert.rejects(client.authorizationCodeGrant(config, signedOut.location, silent.checks), refused('login_required'))

  const asked = await begin(config)
  const denied = await person.answers(asked.url, 'deny')
  await assert.rejects(client.authorizationCodeGrant(config, denied.location, asked.checks), refused('access_denied'))

  const again = await begin(config, { prompt: 'none' })
  const unasked = await person.answers(again.url)
  await assert.rejects(client.authorizationCodeGrant(config, unasked.location, again.checks), refused('consent_required'))
})

test('logout at the client ends the session here', async () => {
  const registered = await register('--post-logout-redirect-uri', 'http://127.0.0.1:5555/bye')
  const config = await discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
  const person = new Person(server.issuer)
  const { url, checks } = await begin(config)
  const answer = await person.answers(url)
  const tokens = await client.authorizationCodeGrant(config, answer.location, checks)
  const bye = client.buildEndSessionUrl(config, {
    id_token_hint: tokens.id_token,
    post_logout_redirect_uri: 'http://127.0.0.1:5555/bye',
    state: 'going',
  })
  const left = await person.open(bye)
  assert.equal(left.location?.href, 'http://127.0.0.1:5555/bye?state=going', left.body)
  const silent = await begin(config, { prompt: 'none' })
  const signedOut = await person.answers(silent.url)
  assert.equal(signedOut.location.searchParams.get('error'), 'login_required')
})

/** Signs in for everything that userinfo tells. */
async function signIn(config) {
  const { url, checks } = await begin(config, { scope: 'openid profile email orders:read' })
  const answer = await new Person(server.issuer).answers(url)
  return client.authorizationCodeGrant(config, answer.location, checks)
}

/** An API that asks about tokens of its audience. */
async function api() {
  const registered = await server.client('--name', 'Orders API', '--serves', AUDIENCE, '--grant-type', 'client_credentials')
  return discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
}

test('tokens live: userinfo, refresh, and the answer that was lost', async () => {
  const registered = await register()
  const config = await discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
  const tokens = await signIn(config)
  const person = await client.fetchUserInfo(config, tokens.access_token, server.sub)
  assert.equal(person.preferred_username, 'alice')
  assert.equal(person.email, 'alice@mail.example')

  const next = await client.refreshTokenGrant(config, tokens.refresh_token)
  assert.notEqual(next.refresh_token, tokens.refresh_token)
  assert.equal(next.claims().sub, server.sub)
  assert.equal((await verifyAtApi(next.access_token, config)).sub, server.sub)
  const again = await client.refreshTokenGrant(config, tokens.refresh_token)
  assert.equal(again.refresh_token, next.refresh_token)
  const narrow = await client.refreshTokenGrant(config, again.refresh_token, { scope: 'orders:read' })
  assert.equal(narrow.scope, 'orders:read')
})

test('tokens die: what is revoked is dead at userinfo, and for an API that introspects', async () => {
  const registered = await register()
  const config = await discover(registered, undefined, client.ClientSecretBasic(registered.client_secret))
  const [asks, tokens] = [await api(), await signIn(config)]
  const alive = await client.tokenIntrospection(asks, tokens.access_token)
  assert.equal(alive.active, true)
  assert.deepEqual([alive.sub, alive.aud, alive.client_id], [server.sub, AUDIENCE, registered.client_id])

  await client.tokenRevocation(config, tokens.access_token)
  assert.deepEqual(await client.tokenIntrospection(asks, tokens.access_token), { active: false })
  const told = client.fetchUserInfo(config, tokens.access_token, server.sub)
  await assert.rejects(told, { name: 'WWWAuthenticateChallengeError', status: 401 })

  const next = await client.refreshTokenGrant(config, tokens.refresh_token)
  await client.tokenRevocation(config, next.refresh_token, { token_type_hint: 'refresh_token' })
  assert.deepEqual(await client.tokenIntrospection(asks, next.access_token), { active: false })
  const late = client.refreshTokenGrant(config, next.refresh_token)
  await assert.rejects(late, { name: 'ResponseBodyError', error: 'invalid_grant', status: 400 })
})

test('userinfo as a signed answer, if the client registered one', async () => {
  const registered = await register('--userinfo-alg', 'ES256')
  const metadata = { client_secret: registered.client_secret, userinfo_signed_response_alg: 'ES256' }
  const config = await discover(registered, metadata, client.ClientSecretBasic(registered.client_secret))
  const tokens = await signIn(config)
  const person = await client.fetchUserInfo(config, tokens.access_token, server.sub)
  assert.deepEqual([person.iss, person.aud, person.preferred_username], [server.issuer, registered.client_id, 'alice'])
})
