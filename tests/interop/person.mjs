// A person at a browser that keeps cookies and posts the forms of our pages.

import assert from 'node:assert/strict'
import { request } from 'node:http'

import { PASSWORD, USERNAME } from './portcullis.mjs'

export class Person {
  #issuer
  #cookies = new Map()

  constructor(issuer) {
    this.#issuer = issuer
  }

  /** Opens the client's request, signs in and decides, whatever of it is asked. Returns where the client is answered. */
  async answers(url, decision = 'allow') {
    let page = await this.open(url)
    if (page.body?.includes('id="login-submit"')) {
      page = await this.submit('/login', page, { username: USERNAME, password: PASSWORD })
    }
    if (page.body?.includes('id="consent-allow"')) {
      const scopes = inputs(page.body, 'scope').map((scope) => ['scope', scope])
      page = await this.submit('/consent', page, [...scopes, ['decision', decision]])
    }
    return page
  }

  /** Follows redirects as long as they stay at the issuer. The last page, or the address of the client. */
  async open(url) {
    let answer = await this.#send('GET', url)
    while (answer.location?.href.startsWith(`${this.#issuer}/`)) answer = await this.#send('GET', answer.location)
    return answer
  }

  /** Posts the form of a page, including its hidden fields. */
  async submit(path, page, fields) {
    const form = new URLSearchParams([...Object.entries(hidden(page.body)), ...new URLSearchParams(fields)])
    const answer = await this.#send('POST', new URL(path, this.#issuer), form)
    return answer.location?.href.startsWith(`${this.#issuer}/`) ? this.open(answer.location) : answer
  }

  #send(method, url, form) {
    const headers = { Cookie: [...this.#cookies].map((pair) => pair.join('=')).join('; ') }
    if (form) {
      headers['Content-Type'] = 'application/x-www-form-urlencoded'
      headers.Origin = this.#issuer
      headers['Sec-Fetch-Site'] = 'same-origin'
    }
    return new Promise((resolve, reject) => {
      const sent = request(url, { method, headers }, async (response) => {
        for (const cookie of response.headers['set-cookie'] ?? []) {
          const [, name, value] = cookie.match(/^([^=]+)=([^;]*)/)
          if (/max-age=0/i.test(cookie)) this.#cookies.delete(name)
          else this.#cookies.set(name, value)
        }
        let body = ''
        for await (const part of response.setEncoding('utf8')) body += part
        // A page that continues by itself leads on like a redirect.
        const refresh = body.match(/http-equiv="refresh" content="0; url=([^"]*)"/)?.[1]
        const location = response.headers.location ?? (refresh && unescape(refresh))
        resolve({ status: response.statusCode, body, location: location && new URL(location, this.#issuer) })
      })
      sent.on('error', reject).end(form?.toString())
    })
  }
}

/** The hidden `authorization` and `csrf` of a page. */
function hidden(body) {
  return Object.fromEntries(['authorization', 'csrf'].flatMap((name) => inputs(body, name).map((value) => [name, value])))
}

/** The values of all inputs of a name. */
export function inputs(body, name) {
  assert.ok(body, 'there is no page')
  return [...body.matchAll(/<input[^>]*>/g)]
    .map(([input]) => input)
    .filter((input) => input.includes(` name="${name}"`))
    .map((input) => unescape(input.match(/ value="([^"]*)"/)?.[1] ?? ''))
}

const unescape = (text) =>
  text.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(code)).replace(/&quot;/g, '"').replace(/&lt;/g, '<').replace(/&gt;/g, '>').replace(/&amp;/g, '&')
