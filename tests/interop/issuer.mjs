// An issuer that signs whatever it is told, wrong tokens too, with a revocation feed: `revoke` does what
// `portcullis revoke session:SID` does.

import { createHash, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'

import { CompactSign, SignJWT, calculateJwkThumbprint, exportJWK, generateKeyPair } from 'jose'

import { AUDIENCE } from './stage.mjs'

export const SUBSCRIBER = { client_id: 'orders-guard', client_secret: 'pcl_sec_x' }

const { client_id, client_secret } = SUBSCRIBER
const basic = `Basic ${Buffer.from(`${client_id}:${client_secret}`).toString('base64')}`
const seconds = () => Math.floor(Date.now() / 1000)

async function key() {
  const { privateKey, publicKey } = await generateKeyPair('ES256')
  const jwk = { ...(await exportJWK(publicKey)), alg: 'ES256', use: 'sig' }
  return { privateKey, jwk: { ...jwk, kid: await calculateJwkThumbprint(jwk) } }
}

/** The 25 bytes of a session's record. */
function packed(sid) {
  const record = Buffer.alloc(25)
  record.write('S')
  createHash('sha256').update(`S\0${sid}`).digest().copy(record, 1, 0, 16)
  record.writeUInt32BE(seconds() + 900, 21)
  return record
}

export async function serve() {
  const [tokens, frames] = [await key(), await key()]
  const records = []
  const streams = new Set()
  let issuer

  const frame = (after) => {
    const now = Date.now() * 1000
    const payload = {
      iss: issuer, v: 1, iat: seconds(), exp: seconds() + 30, epoch: 1, after, last: records.length,
      records: Buffer.concat(records.slice(after)).toString('base64url'),
      at_us: now, as_of_us: now, jwks_etag: '"1"',
    }
    return new CompactSign(Buffer.from(JSON.stringify(payload)))
      .setProtectedHeader({ alg: 'ES256', typ: 'revocation-frame+jwt', kid: frames.jwk.kid })
      .sign(frames.privateKey)
  }
  const tell = async (after) => {
    const event = `data: ${await frame(after)}\n\n`
    for (const stream of streams) stream.write(event)
  }

  const server = createServer(async (request, response) => {
    const url = new URL(request.url, issuer)
    const json = (value) => {
      response.setHeader('Content-Type', 'application/json')
      response.setHeader('ETag', '"1"')
      response.end(JSON.stringify(value))
    }
    const after = () => Number((request.headers['last-event-id'] ?? url.searchParams.get('after') ?? '1:0').split(':')[1])
    const known = {
      '/.well-known/openid-configuration': () => json({ issuer, jwks_uri: `${issuer}/oauth2/jwks` }),
      '/oauth2/jwks': () => json({ keys: [tokens.jwk] }),
      '/revocations/jwks': () => json({ keys: [frames.jwk] }),
    }[url.pathname]
    if (known) return known()
    if (request.headers.authorization !== basic) return response.writeHead(401).end()
    if (url.pathname === '/revocations') return json({ frames: [await frame(after())] })
    if (url.pathname === '/revocations/ack') return json({ max_age: 60 })
    response.writeHead(200, { 'Content-Type': 'text/event-stream' })
    response.write(`data: ${await frame(after())}\n\n`)
    streams.add(response)
    response.once('close', () => streams.delete(response))
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  issuer = `http://127.0.0.1:${server.address().port}`
  const heart = setInterval(() => tell(records.length), 500)

  return {
    issuer,
    /** A token of alice's session `sid`, or of what is said instead. */
    token(sid, { typ = 'at+jwt', ...claims } = {}) {
      const payload = {
        sub: 'alice', client_id: 'shop', scope: 'orders:read', jti: randomUUID(), rev: '1.1.1', sid,
        iss: issuer, aud: AUDIENCE, iat: seconds(), exp: seconds() + 300, ...claims,
      }
      return new SignJWT(payload).setProtectedHeader({ alg: 'ES256', typ, kid: tokens.jwk.kid }).sign(tokens.privateKey)
    },
    revoke(sid) {
      records.push(packed(sid))
      return tell(records.length - 1)
    },
    stop() {
      clearInterval(heart)
      server.closeAllConnections()
      server.close()
    },
  }
}
