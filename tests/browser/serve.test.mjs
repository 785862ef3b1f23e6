// Sign-in, consent and logout as a person meets them.

import assert from 'node:assert/strict'
import { after, before } from 'node:test'

import { PASSWORD, USERNAME, serve } from '../interop/portcullis.mjs'
import { clientSite, launch, person, test } from './chromium.mjs'
import { begin } from './pkce.mjs'

let browser, server, site
before(async () => {
  browser = await launch()
  server = await serve()
  site = await clientSite()
})
after(async () => {
  site?.close()
  await Promise.all([browser?.close(), server?.stop()])
})

/** A client of its own for each test, so that no consent is left from another one. */
async function application() {
  const client = await server.client('--name', 'Corner Shop', '--redirect-uri', site.callback)
  return { begin: (changed) => begin(server, client, site.callback, changed) }
}

async function signIn(page, password = PASSWORD) {
  await page.fill('#username', USERNAME)
  await page.fill('#password', password)
  await page.click('#login-submit')
}

/** Waits for the consent page or the client, and allows where it is asked. */
async function allowIfAsked(page) {
  const asked = page.waitForSelector('#consent-allow').then(() => true, () => false)
  const back = page.waitForURL(`${site.origin}/**`).then(() => false, () => false)
  if (await Promise.race([asked, back])) await page.click('#consent-allow')
}

/** The answer to `request`, once the browser is back at the client. */
async function answer(page, request) {
  await page.waitForURL(`${site.origin}/**`)
  const found = site.arrived.filter(({ params }) => params.get('state') === request.state)
  assert.equal(found.length, 1, `the client got ${found.length} answers`)
  assert.equal(found[0].params.get('iss'), server.issuer)
  return found[0]
}

async function codeArrives(page, request) {
  const { params, method } = await answer(page, request)
  const tokens = await request.redeem(params.get('code'))
  assert.ok(tokens.access_token, JSON.stringify({ tokens, error: params.get('error') }))
  return method
}

for (const javaScriptEnabled of [true, false]) {
  const how = javaScriptEnabled ? '' : ', without JavaScript'

  test(`sign in, allow, and again without being asked${how}`, async () => {
    const app = await application()
    const someone = await person(browser, { javaScriptEnabled })
    const page = await someone.tab()
    const first = app.begin()
    await page.goto(first.url)
    assert.equal(await page.title(), 'Sign in · Portcullis')
    await page.fill('#username', USERNAME)
    await page.fill('#password', PASSWORD)
    await page.press('#password', 'Enter')
    await page.click('#consent-allow')
    await codeArrives(page, first)

    const second = app.begin()
    const shown = []
    page.on('response', (response) => response.status() === 200 && shown.push(new URL(response.url()).origin))
    await page.goto(second.url)
    await codeArrives(page, second)
    assert.ok(!shown.includes(server.issuer), 'the server showed a page in between')
    await someone.leave()
  })

  test(`deny is told to the client${how}`, async () => {
    const app = await application()
    const someone = await person(browser, { javaScriptEnabled })
    const page = await someone.tab()
    const request = app.begin()
    await page.goto(request.url)
    await signIn(page)
    await page.click('#consent-deny')
    assert.equal((await answer(page, request)).params.get('error'), 'access_denied')
    await someone.leave()
  })

  test(`form_post brings the answer by POST${how}`, async () => {
    const app = await application()
    const someone = await person(browser, { javaScriptEnabled })
    const page = await someone.tab()
    const request = app.begin({ response_mode: 'form_post' })
    await page.goto(request.url)
    await signIn(page)
    await page.click('#consent-allow')
    if (!javaScriptEnabled) await page.click('button')
    assert.equal(await codeArrives(page, request), 'POST')
    await someone.leave()
  })
}

test('a wrong password says so, keeps the name and lets try again', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  const request = app.begin()
  await page.goto(request.url)
  await signIn(page, 'wrong-password')
  assert.equal(await page.textContent('#login-error'), 'Invalid user name or password')
  assert.equal(await page.inputValue('#username'), USERNAME)
  assert.equal(await page.inputValue('#password'), '')
  assert.equal(await page.evaluate('document.activeElement.id'), 'password')
  await page.fill('#password', PASSWORD)
  await page.click('#login-submit')
  await page.click('#consent-allow')
  await codeArrives(page, request)
  await someone.leave()
})

test('unticked scopes are not granted', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  const request = app.begin()
  await page.goto(request.url)
  await signIn(page)
  await page.uncheck('input[value="orders:read"]')
  await page.click('#consent-allow')
  const { params } = await answer(page, request)
  const tokens = await request.redeem(params.get('code'))
  assert.deepEqual(tokens.scope.split(' ').sort(), ['openid', 'profile'])
  await someone.leave()
})

test('reload works on every page', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  const request = app.begin()
  await page.goto(request.url)
  await page.reload()
  await signIn(page, 'wrong-password')
  await page.waitForSelector('#login-error')
  await page.reload()
  await signIn(page)
  await page.waitForSelector('#consent-allow')
  await page.reload()
  await page.click('#consent-allow')
  await codeArrives(page, request)
  await someone.leave()
})

test('Back leads on from everywhere', async () => {
  const app = await application()
  const someone = await person(browser, {}, [400])
  const page = await someone.tab()
  const request = app.begin()
  await page.goto(`${site.origin}/`)
  await page.goto(request.url)
  await signIn(page)
  await page.waitForSelector('#consent-allow')
  // Back at the login page, whose form works as before.
  await page.goBack()
  await page.waitForSelector('#login-submit')
  await signIn(page)
  await page.click('#consent-allow')
  await codeArrives(page, request)
  // What is done cannot be done again: a page says so, and what to do.
  await page.goBack()
  await page.waitForSelector('text=This sign-in is already done')
  const again = app.begin()
  await page.goto(again.url)
  await codeArrives(page, again)
  await someone.leave()
})

test('two tabs with two requests both arrive', async () => {
  const app = await application()
  const someone = await person(browser)
  const [left, right] = [await someone.tab(), await someone.tab()]
  const [one, two] = [app.begin(), app.begin()]
  await left.goto(one.url)
  await right.goto(two.url)
  await signIn(left)
  await left.click('#consent-allow')
  await codeArrives(left, one)
  await signIn(right)
  await codeArrives(right, two)
  await someone.leave()
})

test('a consent page goes on although another tab has signed in meanwhile', async () => {
  const app = await application()
  const someone = await person(browser)
  const [left, right] = [await someone.tab(), await someone.tab()]
  const [one, two] = [app.begin(), app.begin()]
  await left.goto(one.url)
  await right.goto(two.url)
  await signIn(left)
  await left.waitForSelector('#consent-allow')
  await signIn(right)
  await right.waitForSelector('#consent-allow')
  await left.click('#consent-allow')
  // It may be asked again, by a page that works.
  await allowIfAsked(left)
  await codeArrives(left, one)
  await someone.leave()
})

test('two tabs with the same request: one arrives, the other says what happened', async () => {
  const app = await application()
  const someone = await person(browser, {}, [400, 403])
  const left = await someone.tab()
  const request = app.begin()
  await left.goto(request.url)
  const right = await someone.tab()
  await right.goto(left.url())
  await signIn(left)
  await left.waitForSelector('#consent-allow')
  // The second tab is overtaken while its form is open; it goes on from where the first one is.
  await signIn(right)
  await right.click('#consent-allow')
  await codeArrives(right, request)
  await left.click('#consent-allow')
  await left.waitForSelector('h1')
  assert.match(await left.textContent('h1'), /already done|was not accepted/)
  const again = app.begin()
  await left.goto(again.url)
  await codeArrives(left, again)
  await someone.leave()
})

test('a form that another site posts to /login is refused', async () => {
  const app = await application()
  const someone = await person(browser, {}, [403])
  const page = await someone.tab()
  await page.goto(app.begin().url)
  const [authorization, csrf] = await Promise.all(['authorization', 'csrf'].map((name) => page.inputValue(`input[name="${name}"]`)))
  // The worst case: the other site knows even the hidden fields.
  const fields = { authorization, csrf, username: USERNAME, password: PASSWORD }
  const inputs = Object.entries(fields).map(([name, value]) => `<input type="hidden" name="${name}" value="${value}">`)
  site.serves('/evil', `<form method="post" action="${server.issuer}/login">${inputs.join('')}<button id="lure">Win!</button></form>`)
  await page.goto(`${site.origin}/evil`)
  const [response] = await Promise.all([page.waitForResponse((response) => response.request().method() === 'POST'), page.click('#lure')])
  assert.equal(response.status(), 403)
  await page.waitForSelector('text=This form was not accepted')
  await page.goto(`${server.issuer}/account`)
  await page.waitForSelector('text=You are not signed in.')
  await someone.leave()
})

test('no page of the server is shown inside a frame', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  site.serves('/frame', `<iframe src="${app.begin().url.replaceAll('&', '&amp;')}"></iframe>`)
  await page.goto(`${site.origin}/frame`)
  assert.equal(await page.frameLocator('iframe').locator('#login-submit').count(), 0)
  // The browser's complaint is what is wanted.
  assert.match(someone.wrong.splice(0).join(), /frame-ancestors/)
  await someone.leave()
})

test('log out: a question, an answer, and Back shows nothing', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  const request = app.begin()
  await page.goto(request.url)
  await signIn(page)
  await page.click('#consent-allow')
  await codeArrives(page, request)
  await page.goto(`${server.issuer}/oauth2/end_session`)
  await page.click('text=Stay signed in')
  await page.waitForSelector(`text=Signed in as ${USERNAME}`)
  await page.goto(`${server.issuer}/oauth2/end_session`)
  await page.click('#logout-confirm')
  await page.waitForSelector('text=You are signed out')
  await page.goBack()
  assert.ok(!(await page.textContent('body')).includes(USERNAME), 'the name is still there')
  await page.goto(`${server.issuer}/account`)
  await page.waitForSelector('text=You are not signed in.')
  await someone.leave()
})

test('a client that asks for logout gets the browser back after the question', async () => {
  const bye = `${site.origin}/bye`
  const client = await server.client('--name', 'Corner Shop', '--redirect-uri', site.callback, '--post-logout-redirect-uri', bye)
  const someone = await person(browser)
  const page = await someone.tab()
  const signInOnce = async () => {
    const request = begin(server, client, site.callback)
    await page.goto(request.url)
    await signIn(page)
    await allowIfAsked(page)
    return request.redeem((await answer(page, request)).params.get('code'))
  }
  const earlier = await signInOnce()
  await page.goto(`${server.issuer}/account`)
  await page.click('#account-logout')
  await page.waitForSelector('text=You are signed out')
  // The hint is of a login that has ended, so this one is not ended without a question.
  await signInOnce()
  const url = new URL('/oauth2/end_session', server.issuer)
  url.search = new URLSearchParams({ id_token_hint: earlier.id_token, post_logout_redirect_uri: bye, state: 'going' })
  await page.goto(url.href)
  await page.click('#logout-confirm')
  await page.waitForURL(`${bye}?state=going`)
  await someone.leave()
})

test('the button on the account page logs out', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  await page.goto(app.begin().url)
  await signIn(page)
  await page.waitForSelector('#consent-allow')
  await page.goto(`${server.issuer}/`)
  await page.click('#account-logout')
  await page.waitForSelector('text=You are signed out')
  await page.goto(app.begin().url)
  await page.waitForSelector('#login-submit')
  await someone.leave()
})

test('account_page_offers_sign_in_and_returns', async () => {
  const someone = await person(browser)
  const page = await someone.tab()
  for (const path of ['/account', '/']) {
    await page.goto(`${server.issuer}${path}`)
    await page.click('#account-sign-in')
    await signIn(page)
    await page.waitForURL(`${server.issuer}/account`)
    await page.waitForSelector(`text=Signed in as ${USERNAME}`)
    await page.goBack()
    await page.click('#account-logout')
    await page.waitForSelector('text=You are signed out')
  }
  // The page after a sign-out leads back, too.
  await page.click('#signed-out-sign-in')
  await signIn(page)
  await page.waitForURL(`${server.issuer}/account`)
  // Who is signed in is not asked again.
  await page.goto(`${server.issuer}/login`)
  await page.waitForURL(`${server.issuer}/account`)
  await someone.leave()
})

test('two tabs sign in to the account page at once', async () => {
  const someone = await person(browser)
  const tabs = [await someone.tab(), await someone.tab()]
  for (const tab of tabs) await tab.goto(`${server.issuer}/login`)
  for (const tab of tabs) {
    await signIn(tab)
    await tab.waitForURL(`${server.issuer}/account`)
  }
  for (const tab of tabs) {
    await tab.reload()
    await tab.waitForSelector(`text=Signed in as ${USERNAME}`)
  }
  await someone.leave()
})

test('servers and programs on other ports of localhost keep their cookies', async () => {
  const other = await serve()
  const someone = await person(browser)
  const page = await someone.tab()
  // Another program on the host, which uses short names.
  const own = ['sid', 'ix', 'dev'].flatMap((name) => ['/', '/oauth2'].map((path) => ({ name, value: `own-${path}`, domain: 'localhost', path })))
  await someone.context.addCookies(own)
  for (const { issuer } of [server, other]) {
    await page.goto(`${issuer}/login`)
    await signIn(page)
    await page.waitForURL(`${issuer}/account`)
  }
  for (const { issuer } of [server, other]) {
    await page.goto(`${issuer}/account`)
    await page.waitForSelector(`text=Signed in as ${USERNAME}`)
  }
  const kept = await someone.context.cookies([server.issuer, `${server.issuer}/oauth2`])
  for (const { name, value, path } of own) assert.ok(kept.some((cookie) => cookie.name === name && cookie.value === value && cookie.path === path), `${name} at ${path}`)
  await someone.leave()
  await other.stop()
})

test('consent can be given with another account', async () => {
  const app = await application()
  await server.command('user', 'create', 'carol', '--password-stdin', { stdin: PASSWORD })
  const someone = await person(browser)
  const page = await someone.tab()
  const request = app.begin()
  await page.goto(request.url)
  await signIn(page)
  await page.click('#consent-other-account')
  await page.fill('#username', 'carol')
  await page.fill('#password', PASSWORD)
  await page.click('#login-submit')
  await page.waitForSelector('#consent-allow')
  assert.match(await page.textContent('main'), /to your account carol/)
  await page.click('#consent-allow')
  await codeArrives(page, request)
  await someone.leave()
})

test('nothing is kept where scripts or the disk can read it', async () => {
  const app = await application()
  const someone = await person(browser)
  const page = await someone.tab()
  await page.goto(app.begin().url)
  await signIn(page)
  await page.waitForSelector('#consent-allow')
  const kept = await page.evaluate('[document.cookie, localStorage.length, sessionStorage.length]')
  assert.deepEqual(kept, ['', 0, 0])
  const cookies = (await someone.context.cookies()).filter((cookie) => cookie.domain === 'localhost')
  assert.ok(cookies.length >= 2)
  for (const { name, httpOnly, sameSite } of cookies) assert.deepEqual([name, httpOnly, sameSite], [name, true, 'Lax'])
  await someone.leave()
})
