// An orders API that verifies access tokens itself (RFC 9068). npm install express jose
import express from 'express'
import { createRemoteJWKSet, jwtVerify } from 'jose'

const ISSUER = process.env.ISSUER ?? 'https://id.example.com'
const AUDIENCE = process.env.AUDIENCE ?? 'https://orders.example.com'

const metadata = await (await fetch(`${ISSUER}/.well-known/openid-configuration`)).json()
// Fetches the keys when needed and caches them, so there is no call per request.
const keys = createRemoteJWKSet(new URL(metadata.jwks_uri))

/** Requires a valid access token with the given scope. */
function needs(scope) {
  const refuse = (response, status, error) => {
    const detail = error ? `, error="${error}"` : ''
    response.set('WWW-Authenticate', `Bearer realm="${AUDIENCE}"${detail}`).sendStatus(status)
  }
  return async (request, response, next) => {
    const token = request.get('Authorization')?.match(/^Bearer +(\S+)$/i)?.[1]
    if (!token) return refuse(response, 401)
    let claims
    try {
      const { payload } = await jwtVerify(token, keys, {
        issuer: ISSUER,
        audience: AUDIENCE,
        typ: 'at+jwt', // rejects ID tokens
        algorithms: ['ES256', 'RS256'], // never choose the algorithm by the token's header
        requiredClaims: ['sub', 'client_id', 'exp', 'iat', 'jti'],
        clockTolerance: 30,
      })
      claims = payload
    } catch (error) {
      // Without the keys, the token cannot be verified: 503, not 401.
      const keyless = !error.code?.startsWith('ERR_J') || ['ERR_JOSE_GENERIC', 'ERR_JWKS_TIMEOUT'].includes(error.code)
      if (keyless) return response.set('Retry-After', '2').sendStatus(503)
      return refuse(response, 401, 'invalid_token')
    }
    // A token that is bound to a key needs proof of possession, which this service does not check.
    if (claims.cnf) return refuse(response, 401, 'invalid_token')
    if (!(claims.scope ?? '').split(' ').includes(scope)) return refuse(response, 403, 'insufficient_scope')
    request.caller = claims
    next()
  }
}

const app = express()

app.get('/orders', needs('orders:read'), (request, response) => {
  response.json({ orders_of: request.caller.sub, may_write: request.caller.scope.split(' ').includes('orders:write') })
})

app.listen(process.env.PORT ?? 3000, '127.0.0.1')
