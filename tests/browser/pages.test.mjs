// Every page in every state: readable, operable, and whole at any width, in light and in dark.

import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before } from 'node:test'

import { PASSWORD, USERNAME, demo as startDemo, serve } from '../interop/portcullis.mjs'
import { launch, person, test, withoutRefresh } from './chromium.mjs'
import { begin } from './pkce.mjs'

const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const CALLBACK = 'http://127.0.0.1:5555/cb'
const LONG = 'Donaudampfschifffahrtsgesellschaftskapitänsanwärter und Töchter'

let browser, server, demo, client, wordy
/** Servers without an administrator. */
const untouched = []
before(async () => {
  browser = await launch()
  server = await serve()
  demo = await startDemo()
  const about = ['client', 'policy', 'tos'].flatMap((page) => [`--${page}-uri`, `https://shop.example/${page}`])
  const post = ['--redirect-uri', CALLBACK, '--post-logout-redirect-uri', 'https://shop.example/bye']
  client = await server.client('--name', 'Corner Shop', ...post)
  wordy = await server.client('--name', LONG, ...post, ...about)
})
after(() => Promise.all([browser?.close(), server?.stop(), demo?.stop(), ...untouched.map((fresh) => fresh.stop())]))

const request = (changed, of = client) => begin(server, of, CALLBACK, { prompt: 'login consent', ...changed }).url

async function signIn(page, { username, password } = { username: USERNAME, password: PASSWORD }) {
  await page.fill('#username', username)
  await page.fill('#password', password)
  await page.click('#login-submit')
}

async function session(page) {
  await page.goto(request())
  await signIn(page)
  await page.waitForSelector('#consent-allow')
}

async function demoSession(page) {
  await page.goto(demo.home)
  await page.click('#demo-start')
  await signIn(page, demo)
  const [consent, done] = [page.locator('#consent-allow'), page.getByText('Signed in as')]
  await consent.or(done).waitFor()
  if (await consent.count()) await consent.click()
  await done.waitFor()
}

/** A server on its first start, whose set-up link is opened. */
async function opened(page) {
  const fresh = await serve()
  untouched.push(fresh)
  const { link } = await fresh.command('setup', 'link')
  await page.goto(link)
  assert.equal(page.url(), `${fresh.issuer}/setup`, 'the link stays in the address bar')
}

async function setUp(page, { username = 'root', password = PASSWORD, repeat = password } = {}) {
  await page.fill('#username', username)
  await page.fill('#password', password)
  await page.fill('#repeat', repeat)
  await page.click('#setup-submit')
}

/** An administrator of the configuration, signed in. */
async function temporary(page) {
  const folder = await mkdtemp(join(tmpdir(), 'portcullis-pages-'))
  const file = join(folder, 'password')
  await writeFile(file, PASSWORD, { mode: 0o600 })
  const fresh = await serve({ PORTCULLIS__BOOTSTRAP__ADMIN_PASSWORD_FILE: file })
  untouched.push(fresh)
  await rm(folder, { recursive: true })
  const of = await fresh.client('--name', 'Corner Shop', '--redirect-uri', CALLBACK)
  await page.goto(begin(fresh, of, CALLBACK, {}).url)
  await signIn(page, { username: 'admin', password: PASSWORD })
  await page.waitForSelector('#consent-allow')
  await page.goto(`${fresh.issuer}/account`)
  await page.waitForSelector('text=portcullis user create NAME --admin')
}

/** Name → how to get there, and the statuses of error pages on the way. */
const STATES = {
  login: [(page) => page.goto(request())],
  'login with links': [(page) => page.goto(request({}, wordy))],
  'login with a hint': [(page) => page.goto(request({ login_hint: USERNAME }))],
  'login refused': [
    async (page) => {
      await page.goto(request())
      await signIn(page, { username: USERNAME, password: 'wrong-password' })
      await page.waitForSelector('#login-error')
    },
  ],
  'login throttled': [
    async (page) => {
      await page.goto(request())
      // Each wait is longer than the one before, so a slow machine meets one later.
      for (let tries = 0; tries < 15; tries++) {
        await page.evaluate("document.querySelector('#login-error')?.remove()")
        await signIn(page, { username: 'mallory', password: 'wrong-password' })
        await page.waitForSelector('#login-error')
        if ((await page.textContent('#login-error')).includes('Too many failed sign-ins')) break
      }
      await page.waitForSelector('text=Too many failed sign-ins')
      assert.equal(await page.inputValue('#username'), 'mallory')
    },
    [429],
  ],
  'sign-in already done': [
    async (page) => {
      await page.route(`${CALLBACK}**`, (route) => route.fulfill({ status: 204 }))
      await page.goto(request({}, wordy))
      await signIn(page)
      await page.waitForSelector('#consent-allow')
      const consent = page.url()
      const answered = page.waitForResponse((response) => response.status() === 204)
      await page.click('#consent-allow')
      await answered
      await page.goto(consent)
      await page.waitForSelector('#error-next')
    },
    [400],
  ],
  'login again': [
    async (page) => {
      await session(page)
      await page.goto(request())
      await page.waitForSelector('text=Please sign in again')
    },
  ],
  'continue by hand': [
    async (page) => {
      await withoutRefresh(page)
      await page.goto(request())
      await signIn(page)
      await page.waitForSelector('#continue')
    },
  ],
  consent: [session],
  'consent with links': [
    async (page) => {
      await page.goto(request({ scope: 'openid profile email orders:read' }, wordy))
      await signIn(page)
      await page.waitForSelector('text=Privacy policy')
    },
  ],
  'error of a request': [(page) => page.goto(request({ client_id: 'unknown' })), [400]],
  'error of an address': [(page) => page.goto(`${server.issuer}/${'nowhere'.repeat(20)}`), [404]],
  'error of a sign-in': [(page) => page.goto(`${server.issuer}/consent`), [400]],
  'login to the account': [(page) => page.goto(`${server.issuer}/login`)],
  'login of another product': [
    async (page) => {
      const fresh = await serve({ PORTCULLIS__BRANDING__PRODUCT: 'Acme Accounts' })
      untouched.push(fresh)
      await page.goto(`${fresh.issuer}/login`)
      const mark = await page.request.get(await page.getAttribute('img.mark', 'src').then((src) => `${fresh.issuer}${src}`))
      assert.match(await mark.text(), />A<\/text>/)
    },
  ],
  'login with a long password': [
    async (page) => {
      await page.goto(`${server.issuer}/login`)
      await signIn(page, { username: USERNAME, password: 'x'.repeat(1025) })
      await page.waitForSelector('text=A password has at most 1024 bytes.')
      assert.equal(await page.inputValue('#username'), USERNAME)
    },
    [400],
  ],
  'login with another account': [
    async (page) => {
      await session(page)
      await page.click('#consent-other-account')
      await page.waitForSelector('text=If you sign in with another account')
      assert.equal(await page.inputValue('#username'), '')
    },
  ],
  'account signed in': [
    async (page) => {
      await page.route(CALLBACK, (route) => route.fulfill({ status: 204 }))
      for (const of of [client, wordy]) {
        await page.goto(request({ scope: 'openid profile email orders:read', response_mode: 'form_post' }, of))
        await signIn(page)
        await page.click('#consent-allow')
        await page.waitForSelector('text=Returning you')
      }
      await page.goto(`${server.issuer}/account`)
      await page.waitForSelector('#account-consents')
    },
  ],
  'set up': [opened],
  'set up refused': [
    async (page) => {
      await opened(page)
      await setUp(page, { repeat: 'something else entirely' })
      await page.waitForSelector('#setup-error')
      assert.equal(await page.evaluate('document.activeElement.id'), 'password')
    },
  ],
  'set up done': [
    async (page) => {
      await opened(page)
      await setUp(page)
      await page.waitForSelector('#account-next')
    },
  ],
  'set up too late': [(page) => page.goto(`${server.issuer}/setup?token=x`), [400]],
  'account of a temporary administrator': [temporary],
  'account signed out': [(page) => page.goto(`${server.issuer}/account`)],
  'logout question': [
    async (page) => {
      await session(page)
      await page.goto(`${server.issuer}/oauth2/end_session`)
      await page.waitForSelector('#logout-confirm')
    },
  ],
  'signed out': [(page) => page.goto(`${server.issuer}/oauth2/end_session`)],
  'form post': [
    async (page) => {
      // A client that has nothing to show leaves the browser on the page.
      await page.route(CALLBACK, (route) => route.fulfill({ status: 204 }))
      await page.goto(request({ response_mode: 'form_post' }))
      await signIn(page)
      await page.click('#consent-allow')
      await page.waitForSelector('text=Returning you')
    },
  ],
  demo: [(page) => page.goto(demo.home)],
  'demo signed in': [demoSession],
  'demo with the API called': [
    async (page) => {
      await demoSession(page)
      await page.click('#demo-call')
      await page.waitForSelector('#step-4.done')
    },
  ],
  'demo with the tokens revoked': [
    async (page) => {
      await demoSession(page)
      await page.click('#demo-revoke')
      await page.waitForSelector('#step-6.done .finding')
    },
  ],
  'demo refused': [
    async (page) => {
      await demoSession(page)
      await page.click('#demo-revoke')
      await page.waitForSelector('#step-6.done')
      await page.click('#demo-call')
      await page.waitForSelector('#step-4.refused')
    },
  ],
  'demo with a forged answer': [
    async (page) => {
      await page.goto(demo.home)
      await page.goto(`${demo.home}callback?error=access_denied&state=guessed&iss=${encodeURIComponent(demo.issuer)}`)
      await page.waitForSelector('.step.failed')
    },
  ],
}

for (const [name, [visit, statuses]] of Object.entries(STATES)) {
  test(name, async () => {
    const someone = await person(browser, { viewport: { width: 1280, height: 900 } }, statuses)
    const page = await someone.tab()
    await visit(page)
    const found = []
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme })
      found.push(...(await accessibility(page)).map((problem) => `${colorScheme}: ${problem}`))
      await picture(page, `${name} ${colorScheme}`)
    }
    for (const [view, width, zoom] of [['wide', 1280, 1], ['at 200 %', 640, 1], ['with text of 200 %', 1280, 2], ['at 360 px', 360, 1], ['at 320 px', 320, 1]]) {
      await page.setViewportSize({ width, height: 900 })
      found.push(...(await page.evaluate(clipped, zoom)).map((problem) => `${view}: ${problem}`))
      if (width === 320) await picture(page, `${name} narrow`)
    }
    assert.deepEqual(found, [])
    await someone.leave()
  })
}

async function accessibility(page) {
  // Colours must not be read in the middle of a transition.
  await page.evaluate('Promise.all(document.getAnimations().map((animation) => animation.finished))')
  await page.evaluate(`${axe}; 0`)
  const { violations } = await page.evaluate('axe.run({ resultTypes: ["violations"] })')
  return violations.flatMap(({ id, help, nodes }) => nodes.map((node) => `${id}: ${help}: ${node.html.slice(0, 160)}`))
}

/** In the page: what sticks out sideways, and what is cut off. */
function clipped(zoom) {
  const root = document.documentElement
  root.style.fontSize = `${zoom * 100}%`
  const problems = []
  if (root.scrollWidth > root.clientWidth) problems.push(`the page scrolls sideways: ${root.scrollWidth} > ${root.clientWidth}`)
  for (const element of document.body.querySelectorAll('*')) {
    const style = getComputedStyle(element)
    const box = element.getBoundingClientRect()
    // Text for screen readers alone is a clipped pixel by intention; what scrolls by itself is not lost.
    if (box.width <= 1 || element.closest('.unseen') || element.parentElement.closest('pre')) continue
    const told = `<${element.localName} class="${element.className}"> ${element.textContent.trim().slice(0, 40)}`
    if (box.right > root.clientWidth + 1 || box.left < -1) problems.push(`sticks out: ${told}`)
    const hidden = (overflow) => overflow === 'hidden' || overflow === 'clip'
    if (hidden(style.overflowX) && element.scrollWidth > element.clientWidth + 1) problems.push(`cut off: ${told}`)
    if (hidden(style.overflowY) && element.scrollHeight > element.clientHeight + 1) problems.push(`cut off: ${told}`)
    if (element.localName === 'button' && element.scrollWidth > element.clientWidth + 1) problems.push(`too narrow: ${told}`)
  }
  root.style.fontSize = ''
  return problems
}

async function picture(page, name) {
  const folder = process.env.SCREENSHOTS
  if (!folder) return
  await mkdir(folder, { recursive: true })
  await page.screenshot({ path: join(folder, `${name.replaceAll(' ', '-')}.png`), fullPage: true })
}
