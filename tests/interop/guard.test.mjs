// The whole of it: a person signs in, her token passes nginx and the guard, and `portcullis revoke` ends it there.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import * as client from 'openid-client'

import { Person } from './person.mjs'
import { serve } from './portcullis.mjs'
import { AUDIENCE, Stage, call, once } from './stage.mjs'

const CALLBACK = 'http://127.0.0.1:5555/callback'

let server, stage, port, config
before(async () => {
  server = await serve()
  await server.command('resource', 'create', '--audience', AUDIENCE, '--name', 'Orders', '--scope', 'orders:read=See your orders')
})
after(async () => {
  await stage?.stop()
  await server?.stop()
})

/** A token of alice by the code flow. */
async function signIn() {
  const verifier = client.randomPKCECodeVerifier()
  const state = client.randomState()
  const url = client.buildAuthorizationUrl(config, {
    redirect_uri: CALLBACK,
    scope: 'openid orders:read',
    resource: AUDIENCE,
    code_challenge: await client.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    state,
  })
  const answer = await new Person(server.issuer).answers(url)
  const checks = { pkceCodeVerifier: verifier, expectedState: state }
  return (await client.authorizationCodeGrant(config, answer.location, checks)).access_token
}

/** Until the server has heard of an instance, which it writes down once a second. */
async function listed(instance) {
  for (let tries = 0; tries < 100; tries++) {
    const { subscribers } = await server.command('feed', 'status')
    if (subscribers.some((subscriber) => subscriber.instance === instance)) return
    await sleep(50)
  }
  throw new Error(`${instance} is not listed`)
}

test('alice is let in, cut off at the proxy by one command, and let in again after a new login', async () => {
  const shop = await server.command(
    'client', 'create', '--name', 'Corner Shop', '--redirect-uri', CALLBACK, '--resource', AUDIENCE, '--scope', 'openid orders:read',
  )
  const guard = await server.command(
    'client', 'create', '--name', 'Orders guard', '--serves', AUDIENCE, '--grant-type', 'client_credentials', '--scope', '',
  )
  stage = await Stage.build(server.issuer)
  port = await stage.nginx(await stage.guard(guard), await stage.service('express-guarded.mjs'))
  const basic = client.ClientSecretBasic(shop.client_secret)
  const options = { execute: [client.allowInsecureRequests] }
  config = await client.discovery(new URL(server.issuer), shop.client_id, {}, basic, options)

  const token = await signIn()
  await once(port, token, 200)
  assert.deepEqual(await (await call(port, token)).json(), { orders_of: server.sub, may_write: false })

  await listed('web-1')
  const told = await server.command('revoke', `user:${server.sub}`, '--reason', 'left the company', '--wait')
  // The command is over: no instance accepts it any more.
  assert.equal((await call(port, token)).status, 401)
  assert.deepEqual([told.applied, told.instances, told.waiting], [1, 1, []])

  // What begins after the cut-off lives, at once.
  const again = await signIn()
  assert.equal((await call(port, again)).status, 200)
  assert.equal((await call(port, token)).status, 401)
})
