// `portcullis demo`, as a newcomer goes through it.

import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach } from 'node:test'

import { demo as startDemo } from '../interop/portcullis.mjs'
import { launch, person, test } from './chromium.mjs'

let browser, demo
before(async () => {
  browser = await launch()
})
after(() => browser?.close())
// The demo remembers what its one user has allowed, so each test has its own.
beforeEach(async () => {
  demo = await startDemo()
})
afterEach(() => demo?.stop())

const outcomes = (page) => page.locator('.step .outcome').allTextContents()

async function signIn(page, password = demo.password) {
  await page.fill('#username', demo.username)
  await page.fill('#password', password)
  await page.click('#login-submit')
}

for (const javaScriptEnabled of [true, false]) {
  test(`from the front page to tokens to the API${javaScriptEnabled ? '' : ', without JavaScript'}`, async () => {
    const someone = await person(browser, { javaScriptEnabled })
    const page = await someone.tab()
    await page.goto(demo.home)
    // This page shows what the next one asks for.
    assert.ok((await page.textContent('main')).includes(demo.password))
    assert.deepEqual(await outcomes(page), Array(8).fill('To come'))
    await page.click('#demo-start')
    assert.ok(page.url().startsWith(`${demo.issuer}/login`))
    await signIn(page)
    await page.click('#consent-allow')
    await page.waitForURL(demo.home)
    assert.deepEqual(await outcomes(page), ['Done', 'Done', 'Done', ...Array(5).fill('To come')])
    assert.match(await page.textContent('#step-3'), /"typ": "at\+jwt"/)
    await page.click('#demo-call')
    await page.waitForSelector('#step-4.done')
    assert.match(await page.textContent('#step-4'), /200 OK[^]*drawbridge chain/)

    // The next tokens; then what was allowed ends: the refresh token buys nothing more, and the API
    // refuses the access token that it accepted, within the second that is promised.
    await page.click('#demo-refresh')
    await page.waitForSelector('#step-5.done')
    assert.match(await page.textContent('#step-5'), /grant_type = refresh_token[^]*"typ": "at\+jwt"/)
    await page.click('#demo-revoke')
    await page.waitForSelector('#step-6.done')
    const revoked = await page.textContent('#step-6')
    assert.match(revoked, /200 OK[^]*401 Unauthorized\s+WWW-Authenticate: Bearer [^]*"invalid_token"[^]*400 Bad Request[^]*invalid_grant/)
    assert.match(revoked, /the API, which does not call the server, refused the access token/)
    const [, figure] = /^(\d+) ms$/.exec(await page.textContent('#step-6 .finding strong'))
    assert.ok(figure >= 1 && figure < 1000, `${figure} ms until the API refused`)
    for (const gone of ['#demo-refresh', '#demo-revoke']) assert.equal(await page.locator(gone).count(), 0)
    await page.click('#demo-call')
    await page.waitForSelector('#step-4.refused')
    assert.match(await page.textContent('#step-4'), /401 Unauthorized[^]*The access token is invalid/)
    // What was measured stays.
    assert.equal(await page.textContent('#step-6 .finding strong'), `${figure} ms`)

    assert.match(await page.textContent('.measured'), new RegExp(`^${figure} ms `))
    assert.match(await page.textContent('.rail'), /Start over makes the application forget its tokens/)

    // Once more: signed in there already, and the consent is remembered.
    await page.click('#demo-reset')
    await page.waitForSelector('text=Not signed in yet')
    const shown = []
    page.on('response', (response) => response.status() === 200 && shown.push(response.url()))
    await page.click('#demo-start')
    await page.waitForSelector('text=Signed in as')
    assert.ok(!shown.some((url) => url.startsWith(`${demo.issuer}/`)), 'a page of the server came between')
    await someone.leave()
  })
}

test('repeated presses cause one revocation', async () => {
  const someone = await person(browser)
  const page = await someone.tab()
  await page.goto(demo.home)
  await page.click('#demo-start')
  await signIn(page)
  await page.click('#consent-allow')
  await page.waitForSelector('text=Signed in as')
  const csrf = await page.inputValue('form[action="/revoke"] input[name="csrf"]')
  const press = async () => {
    const answer = await someone.context.request.post(`${demo.home}revoke`, { form: { csrf } })
    return (await answer.text()).match(/<p class="finding"><strong>(\d+ ms)</)?.[1]
  }
  const figures = await Promise.all(Array.from({ length: 12 }, press))
  // And from a tab that was left open.
  figures.push(await press())
  assert.match(figures[0], / ms$/)
  assert.deepEqual(figures, Array(13).fill(figures[0]))
  await someone.leave()
})

test('a wrong password, then the right one', async () => {
  const someone = await person(browser)
  const page = await someone.tab()
  await page.goto(demo.home)
  await page.click('#demo-start')
  await signIn(page, 'not-the-password')
  await page.waitForSelector('#login-error')
  await signIn(page)
  await page.waitForSelector('#consent-allow')
  await someone.leave()
})

test('denied is shown by the application, and it can be tried again', async () => {
  const someone = await person(browser)
  const page = await someone.tab()
  await page.goto(demo.home)
  await page.click('#demo-start')
  await signIn(page)
  await page.click('#consent-deny')
  await page.waitForURL(demo.home)
  assert.match(await page.textContent('#step-2'), /access_denied/)
  assert.deepEqual(await outcomes(page), ['Done', 'Refused', ...Array(6).fill('To come')])
  await page.click('#demo-start')
  await page.click('#consent-allow')
  await page.waitForSelector('text=Signed in as')
  await someone.leave()
})

test('reload and Back show the current state of the application', async () => {
  const someone = await person(browser)
  const page = await someone.tab()
  await page.goto(demo.home)
  await page.click('#demo-start')
  await page.waitForSelector('#login-submit')
  await page.goBack()
  await page.click('#demo-start')
  await signIn(page)
  await page.click('#consent-allow')
  await page.waitForSelector('text=Signed in as')
  await page.reload()
  await page.waitForSelector('text=Signed in as')
  await someone.leave()
})

for (const [name, button, step] of [['code', '#demo-replay', 7], ['refresh token', '#demo-reuse', 8]]) {
  test(`a stolen ${name} is refused and ends the grant`, async () => {
    const someone = await person(browser, { viewport: { width: 360, height: 740 } })
    const page = await someone.tab()
    await page.goto(demo.home)
    await page.click('#demo-start')
    await signIn(page)
    await page.click('#consent-allow')
    await page.waitForSelector('text=Signed in as')
    await page.click(button)
    await page.waitForSelector(`#step-${step}.done`)
    assert.match(await page.textContent(`#step-${step}`), /400 Bad Request[^]*"invalid_grant"[^]*401 Unauthorized/)
    for (const gone of ['#demo-refresh', '#demo-revoke', '#demo-replay', '#demo-reuse']) assert.equal(await page.locator(gone).count(), 0)
    await someone.leave()
  })
}

test('at 360 px the next button is in view after each press', async () => {
  const someone = await person(browser, { viewport: { width: 360, height: 740 } })
  const page = await someone.tab()
  await page.goto(demo.home)
  await page.click('#demo-start')
  await signIn(page)
  await page.click('#consent-allow')
  await page.waitForSelector('text=Signed in as')
  for (const [button, step] of [['#demo-call', 4], ['#demo-refresh', 5], ['#demo-revoke', 6]]) {
    await page.click(button)
    await page.waitForSelector(`#step-${step}.done`)
    const next = await page.locator('#demo-call').boundingBox()
    assert.ok(next.y >= 0 && next.y + next.height <= 740, `${button}: ${JSON.stringify(next)}`)
    const heading = await page.locator(`#step-${step} h2`).boundingBox()
    assert.ok(heading.y >= 0 && heading.y < next.y, `${button}: the step is at ${heading.y}`)
  }
  // The boxes show all of what they contain.
  for (const box of await page.locator('.panel .code').all()) {
    const [height, content] = await box.evaluate((element) => [element.clientHeight, element.scrollHeight])
    assert.ok(content <= height + 1, `${content} of ${height} px`)
  }
  await someone.leave()
})
