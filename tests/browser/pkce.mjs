// The client's side of a request, by hand: the browser is what is tested here.

import { createHash, randomBytes } from 'node:crypto'

const random = () => randomBytes(32).toString('base64url')

/** A request of a client: where the browser goes, and what redeems the answer. */
export function begin(server, client, redirectUri, changed = {}) {
  const verifier = random()
  const state = random()
  const url = new URL('/oauth2/authorize', server.issuer)
  url.search = new URLSearchParams({
    client_id: client.client_id,
    redirect_uri: redirectUri,
    response_type: 'code',
    scope: 'openid profile orders:read',
    state,
    nonce: random(),
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
    ...changed,
  })
  const redeem = async (code) => {
    const body = new URLSearchParams({ grant_type: 'authorization_code', redirect_uri: redirectUri, code, code_verifier: verifier })
    const headers = { Authorization: `Basic ${btoa(`${client.client_id}:${client.client_secret}`)}` }
    const response = await fetch(new URL('/oauth2/token', server.issuer), { method: 'POST', headers, body })
    return response.json()
  }
  return { url: url.href, state, redeem }
}
