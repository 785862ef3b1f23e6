// Each page with a form leads to the client, whatever kind of address its callback has, and wherever the
// client redirects from there. Chromium applies the CSP directive form-action to every such redirect.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before } from 'node:test'

import { PASSWORD, USERNAME, serve } from '../interop/portcullis.mjs'
import { launch, person, test, withoutRefresh } from './chromium.mjs'
import { begin } from './pkce.mjs'

const PRIVATE = 'com.example.app:/oauth-callback'

let browser, server
/** Origins of the client by kind, and of the place it redirects to. */
const origins = {}
const listeners = []
/** Where the callback redirects to; empty for a page of the client. */
let onward = ''
/** What the client received at its addresses, newest last. */
const arrived = []

before(async () => {
  browser = await launch()
  server = await serve()
  const tls = await selfSigned()
  const kinds = { https: 'localhost', ipv4: '127.0.0.1', ipv6: '[::1]', localhost: 'localhost' }
  for (const [kind, host] of Object.entries(kinds)) origins[kind] = await listens(kind === 'https' && tls, host)
  // Other ports, so other origins.
  origins.elsewhere = await listens(false, '127.0.0.1')
  origins.secureElsewhere = await listens(tls, '127.0.0.1')
})
after(async () => {
  for (const listener of listeners) listener.close()
  await Promise.all([browser?.close(), server?.stop()])
})

/** A certificate that no test trusts by itself: the contexts ignore it. */
async function selfSigned() {
  const folder = await mkdtemp(join(tmpdir(), 'portcullis-redirects-'))
  const [key, cert] = ['key.pem', 'cert.pem'].map((name) => join(folder, name))
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1']
  const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1']
  execFileSync('openssl', ['req', '-x509', ...kind, '-nodes', '-days', '2', ...subject, '-keyout', key, '-out', cert], { stdio: 'ignore' })
  const pair = { key: await readFile(key), cert: await readFile(cert) }
  await rm(folder, { recursive: true })
  return pair
}

async function listens(tls, host) {
  const handler = async (request, response) => {
    let body = ''
    for await (const part of request.setEncoding('utf8')) body += part
    const url = new URL(request.url, 'http://client')
    if (url.pathname === '/favicon.ico') return response.writeHead(204).end()
    arrived.push({ method: request.method, path: url.pathname, params: new URLSearchParams(body || url.search) })
    if (url.pathname !== '/home' && onward) return response.writeHead(303, { Location: onward }).end()
    response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' })
    response.end('<!DOCTYPE html><html lang="en"><title>Client</title><h1>Back at the client</h1>')
  }
  const listener = tls ? https.createServer(tls, handler) : http.createServer(handler)
  await new Promise((resolve) => listener.listen(0, host.replace(/[[\]]/g, ''), resolve))
  listeners.push(listener)
  return `${tls ? 'https' : 'http'}://${host}:${listener.address().port}`
}

const ways = () => ({
  'a page': '',
  'http elsewhere': `${origins.elsewhere}/home`,
  'https elsewhere': `${origins.secureElsewhere}/home`,
  'an app': 'com.example.app:/opened',
})

/** The redirect URI of a kind, as registered and as presented. */
function callback(kind) {
  if (kind === 'private') return [PRIVATE, PRIVATE]
  const uri = `${origins[kind]}/cb`
  // The port of a loopback IP literal is free (RFC 8252 §7.3).
  return [kind === 'ipv6' || kind === 'ipv4' ? uri.replace(/:\d+\//, '/') : uri, uri]
}

async function register(kind, consent, ...more) {
  const [registered] = callback(kind)
  const isPublic = ['ipv4', 'ipv6', 'private'].includes(kind) ? ['--public'] : []
  return server.client('--name', 'Corner Shop', '--redirect-uri', registered, '--consent', consent, ...isPublic, ...more)
}

async function signIn(page) {
  await page.fill('#username', USERNAME)
  await page.fill('#password', PASSWORD)
  await page.click('#login-submit')
}

/** Watches a tab for the address that it leaves to, be it a page or an application of the machine. */
async function watch(page) {
  const session = await page.context().newCDPSession(page)
  await session.send('Page.enable')
  await session.send('Network.enable')
  const opened = []
  page.on('requestfailed', (request) => request.isNavigationRequest() && opened.push([request.url(), request.failure().errorText]))
  session.on('Page.frameRequestedNavigation', ({ url }) => opened.push([url, 'requested']))
  session.on('Network.responseReceivedExtraInfo', ({ headers, statusCode }) => {
    const to = headers.Location ?? headers.location
    if (statusCode === 303 && to) opened.push([to, 'redirect'])
  })
  return opened
}

async function until(condition, what) {
  for (let waited = 0; waited < 10_000; waited += 20) {
    const found = condition()
    if (found) return found
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`${what()} did not happen`)
}

/** The browser ends up at the client, and beyond it where the client says so. */
async function reaches(page, opened, kind, state, wanted) {
  if (kind === 'private') {
    await until(() => opened.some(([url]) => url.startsWith(PRIVATE)), () => `${JSON.stringify(opened)}: the app`)
    return
  }
  await until(() => arrived.some(({ path, params }) => path === '/cb' && params.get('state') === state), () => 'the callback')
  if (wanted.startsWith('com.')) await until(() => opened.some(([url]) => url === wanted), () => `${JSON.stringify(opened)}: ${wanted}`)
  else if (wanted) await page.waitForURL(wanted)
  else await page.waitForURL(`${origins[kind]}/cb**`)
}

for (const kind of ['https', 'ipv4', 'ipv6', 'localhost', 'private']) {
  for (const way of kind === 'private' ? ['a page'] : ['a page', 'http elsewhere', 'https elsewhere', 'an app']) {
    for (const mode of kind === 'private' ? ['query'] : ['query', 'form_post']) {
      for (const shown of ['login', 'consent']) {
        test(`${shown} → ${kind} callback by ${mode} → ${way}`, async () => {
          // A native public client is asked each time, so its login is not its last page.
          onward = ways()[way]
          const client = await register(kind, shown === 'login' ? 'skip' : 'always')
          const someone = await person(browser, { ignoreHTTPSErrors: true })
          const page = await someone.tab()
          const opened = await watch(page)
          const request = begin(server, client, callback(kind)[1], { response_mode: mode, scope: 'openid' })
          await page.goto(request.url)
          await signIn(page)
          if (shown === 'consent') await page.click('#consent-allow')
          await reaches(page, opened, kind, request.state, onward)
          assert.deepEqual(someone.wrong.filter((text) => /Content.Security|form-action/i.test(text)), [])
          await someone.context.close()
        })
      }
    }
  }
}

for (const kind of ['https', 'ipv4', 'ipv6', 'localhost']) {
  for (const way of ['a page', 'http elsewhere', 'https elsewhere', 'an app']) {
    test(`logout → ${kind} → ${way}`, async () => {
      onward = ''
      const bye = `${origins[kind]}/bye`
      const client = await server.client('--name', 'Corner Shop', '--redirect-uri', `${origins.https}/cb`, '--consent', 'skip', '--post-logout-redirect-uri', bye)
      const someone = await person(browser, { ignoreHTTPSErrors: true })
      const page = await someone.tab()
      const request = begin(server, client, `${origins.https}/cb`, { scope: 'openid' })
      await page.goto(request.url)
      await signIn(page)
      await page.waitForURL(`${origins.https}/cb**`)
      const code = new URL(page.url()).searchParams.get('code')
      const { id_token } = await request.redeem(code)
      // Another login, so that the hint alone does not end it and the question is asked.
      await page.goto(`${server.issuer}/account`)
      await page.click('#account-logout')
      await page.waitForSelector('text=You are signed out')
      await page.goto(begin(server, client, `${origins.https}/cb`, { scope: 'openid' }).url)
      await signIn(page)
      await page.waitForURL(`${origins.https}/cb**`)
      onward = ways()[way]
      const opened = await watch(page)
      const state = `going-${kind}-${way}`
      const logout = new URL('/oauth2/end_session', server.issuer)
      logout.search = new URLSearchParams({ id_token_hint: id_token, post_logout_redirect_uri: bye, state })
      await page.goto(logout.href)
      await page.click('#logout-confirm')
      await until(() => arrived.some(({ path, params }) => path === '/bye' && params.get('state') === state), () => 'the return')
      if (onward.startsWith('com.')) await until(() => opened.some(([url]) => url === onward), () => onward)
      else await page.waitForURL(onward || `${bye}**`)
      await someone.context.close()
    })
  }
}

test('set-up leads to the account page', async () => {
  onward = ''
  const fresh = await serve()
  const someone = await person(browser)
  const page = await someone.tab()
  const { link } = await fresh.command('setup', 'link')
  await page.goto(link)
  for (const [field, value] of [['username', 'root'], ['password', PASSWORD], ['repeat', PASSWORD]]) await page.fill(`#${field}`, value)
  await page.click('#setup-submit')
  await page.waitForURL(`${fresh.issuer}/account`)
  await someone.leave()
  await fresh.stop()
})

test('without a refresh the link of the page continues', async () => {
  onward = ''
  const client = await register('https', 'skip')
  const someone = await person(browser, { ignoreHTTPSErrors: true })
  const page = await someone.tab()
  await withoutRefresh(page)
  const request = begin(server, client, callback('https')[1], { scope: 'openid' })
  await page.goto(request.url)
  await signIn(page)
  await page.click('#continue')
  await reaches(page, [], 'https', request.state, '')
  await someone.leave()
})
