// What a person sees of a revocation: a shop in her browser, its orders API behind nginx and the guard, and one
// command that throws her out.

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { after, before } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { PASSWORD, USERNAME, serve } from '../interop/portcullis.mjs'
import { AUDIENCE, Stage, call, once } from '../interop/stage.mjs'
import { launch, person, test } from './chromium.mjs'
import { begin } from './pkce.mjs'

let browser, server, stage, shop
before(async () => {
  ;[browser, server] = await Promise.all([launch(), serve()])
  await server.command('resource', 'create', '--audience', AUDIENCE, '--name', 'Orders', '--scope', 'orders:read=See your orders')
  const subscriber = ['--serves', AUDIENCE, '--grant-type', 'client_credentials', '--scope', '']
  const guard = await server.command('client', 'create', '--name', 'Orders guard', ...subscriber)
  stage = await Stage.build(server.issuer)
  shop = await openShop(await stage.nginx(await stage.guard(guard), await stage.service('express-guarded.mjs')))
})
after(async () => {
  shop?.close()
  await Promise.all([browser?.close(), stage?.stop()])
  await server?.stop()
})

/**
 * A typical shop: it keeps the token of the signed-in user, shows the response of the orders API, and redirects a
 * user whose token the API rejects to the sign-in page.
 */
async function openShop(api) {
  let client, request
  const shop = { token: null, refused: [] }
  const listener = createServer(async (asked, response) => {
    const url = new URL(asked.url, shop.origin)
    const moved = (location) => response.writeHead(303, { Location: location }).end()
    if (url.pathname === '/cb' && url.searchParams.get('state') === request?.state) {
      const tokens = await request.redeem(url.searchParams.get('code'))
      shop.token = tokens.access_token
      return moved('/orders')
    }
    if (url.pathname !== '/orders') return response.writeHead(404).end()
    const answer = shop.token && (await call(api, shop.token))
    if (answer?.status === 200) {
      const { orders_of } = await answer.json()
      response.writeHead(200, { 'Content-Type': 'text/html' })
      return response.end(`<!DOCTYPE html><html lang="en"><title>Corner Shop</title><h1>Orders of <b>${orders_of}</b></h1>`)
    }
    if (answer) shop.refused.push(answer.status)
    request = begin(server, client, shop.callback, { scope: 'openid orders:read', resource: AUDIENCE })
    moved(request.url)
  })
  await new Promise((resolve) => listener.listen(0, '127.0.0.1', resolve))
  shop.origin = `http://127.0.0.1:${listener.address().port}`
  shop.callback = `${shop.origin}/cb`
  shop.orders = `${shop.origin}/orders`
  shop.api = api
  shop.close = () => listener.close()
  const reads = ['--resource', AUDIENCE, '--scope', 'openid orders:read']
  client = await server.command('client', 'create', '--name', 'Corner Shop', '--redirect-uri', shop.callback, ...reads)
  return shop
}

/** Until the server knows of the guard: an instance is written down once a second. */
async function guardIsConnected() {
  for (let tries = 0; tries < 100; tries++) {
    const { subscribers } = await server.command('feed', 'status')
    if (subscribers.length === 1) return
    await sleep(50)
  }
  throw new Error('the guard is not listed')
}

async function signIn(page) {
  await page.fill('#username', USERNAME)
  await page.fill('#password', PASSWORD)
  await page.click('#login-submit')
}

test('one command throws alice out of the shop, and signing in lets her back', async () => {
  await once(shop.api, null, 401)
  await guardIsConnected()
  const alice = await person(browser, {}, [404])
  const page = await alice.tab()
  await page.goto(shop.orders)
  assert.equal(await page.title(), 'Sign in · Portcullis')
  await signIn(page)
  await page.click('#consent-allow')
  await page.waitForURL(shop.orders)
  assert.equal(await page.textContent('b'), server.sub)
  await page.reload()
  assert.equal(await page.title(), 'Corner Shop')

  const revoked = shop.token
  const told = await server.command('revoke', `user:${server.sub}`, '--reason', 'phone lost', '--wait')
  assert.deepEqual([told.applied, told.instances, told.waiting], [1, 1, []])

  // The command has returned, so the very next click ends at the sign-in page.
  await page.reload()
  assert.deepEqual(shop.refused, [401])
  assert.equal(await page.title(), 'Sign in · Portcullis')

  await signIn(page)
  await page.waitForURL(shop.orders)
  assert.equal(await page.textContent('b'), server.sub)
  assert.equal((await call(shop.api, revoked)).status, 401)
  await alice.leave()
})
