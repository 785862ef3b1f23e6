// A real browser that records what must never happen on a page of the server.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createServer } from 'node:http'
import * as node from 'node:test'

import { chromium } from 'playwright-core'

const executablePath = process.env.CHROMIUM || execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim()
const QUIET = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
// Chromium's sandbox refuses to run as root.
const args = process.getuid() === 0 ? [...QUIET, '--no-sandbox'] : QUIET

export const launch = () => chromium.launch({ executablePath, args, headless: true })

/** A test that ends, one way or the other. */
export const test = (name, body) => node.test(name, { timeout: 60_000 }, body)

/**
 * One person's browser: cookies of its own, and a list of what went wrong on its pages. A status of an
 * error page that a test expects is told in `expected`.
 */
export async function person(browser, options = {}, expected = []) {
  const context = await browser.newContext({ locale: 'en-GB', ...options })
  context.setDefaultTimeout(10_000)
  const wrong = []
  context.on('console', (message) => {
    const text = message.text()
    const told = text.startsWith('Failed to load resource') && expected.some((status) => text.includes(` ${status} `))
    if (['error', 'warning'].includes(message.type()) && !told) wrong.push(`console: ${text} (${message.location().url})`)
  })
  context.on('weberror', (error) => wrong.push(`script: ${error.error()}`))
  context.on('request', (request) => {
    if (request.isNavigationRequest()) return
    const [from, to] = [request.frame().url(), request.url()]
    if (/^https?:/.test(from) && new URL(from).origin !== new URL(to).origin) wrong.push(`${from} asked for ${to}`)
  })
  return {
    context,
    wrong,
    tab: () => context.newPage(),
    /** Ends it, and says what went wrong on the way. */
    async leave() {
      await context.close()
      assert.deepEqual(wrong, [])
    },
  }
}

/** Lets a tab show the page that continues by itself, as a browser does that blocks refreshes. */
export const withoutRefresh = (page) =>
  page.route('**/login', async (route) => {
    const response = await route.fetch()
    const body = (await response.text()).replace(/<meta http-equiv="refresh"[^>]*>/, '')
    await route.fulfill({ response, body })
  })

/** A client's own web server on another site than the issuer: it keeps what it is sent and says so. */
export async function clientSite() {
  const arrived = []
  const pages = new Map()
  const server = createServer(async (request, response) => {
    let body = ''
    for await (const part of request.setEncoding('utf8')) body += part
    const url = new URL(request.url, site.origin)
    if (url.pathname === '/favicon.ico') return response.writeHead(204).end()
    if (url.pathname === '/cb') arrived.push({ method: request.method, params: new URLSearchParams(body || url.search) })
    const page = pages.get(url.pathname) ?? '<h1>Back at the client</h1>'
    response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' })
    response.end(`<!DOCTYPE html><html lang="en"><title>Client</title>${page}`)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const site = {
    origin: `http://127.0.0.1:${server.address().port}`,
    /** What came to the redirect URI, oldest first. */
    arrived,
    get callback() {
      return `${this.origin}/cb`
    },
    /** Serves a page of the client. */
    serves: (path, html) => pages.set(path, html),
    close: () => server.close(),
  }
  return site
}
