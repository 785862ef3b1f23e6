// The services of docs/protect-a-service.md, run as they stand there: behind nginx and the guard, and on their own
// with a JWT library, with what each guarantees.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { SUBSCRIBER, serve } from './issuer.mjs'
import { AUDIENCE, Stage, call, once } from './stage.mjs'

const SERVICES = {
  'express, guarded': { file: 'express-guarded.mjs', guarded: true },
  'FastAPI, guarded': { file: 'fastapi_guarded.py', guarded: true },
  'express with jose': { file: 'express-jose.mjs' },
  'FastAPI with PyJWT': { file: 'fastapi_pyjwt.py' },
}

let issuer, stage
const addresses = {}

before(async () => {
  issuer = await serve()
  stage = await Stage.build(issuer.issuer)
  const guard = await stage.guard(SUBSCRIBER)
  const services = Object.entries(SERVICES).map(async ([name, { file, guarded }]) => {
    const direct = await stage.service(file)
    addresses[name] = { direct, port: guarded ? await stage.nginx(guard, direct) : direct }
  })
  await Promise.all(services)
})
after(async () => {
  issuer?.stop()
  await stage?.stop()
})

for (const [name, { guarded }] of Object.entries(SERVICES)) {
  test(`${name}: good tokens pass, others are told why not`, async () => {
    const { port } = addresses[name]
    const good = await issuer.token(`${name} 1`)
    await once(port, good, 200)
    assert.deepEqual(await (await call(port, good)).json(), { orders_of: 'alice', may_write: false })
    const writer = await issuer.token('2', { scope: 'orders:write orders:read' })
    assert.deepEqual(await (await call(port, writer)).json(), { orders_of: 'alice', may_write: true })

    const none = await call(port)
    assert.equal(none.status, 401)
    assert.equal(none.headers.get('WWW-Authenticate'), `Bearer realm="${AUDIENCE}"`)
    const now = Math.floor(Date.now() / 1000)
    for (const [token, status, error] of [
      [await issuer.token('1', { scope: 'email' }), 403, 'insufficient_scope'],
      [await issuer.token('1', { scope: 'orders:reads' }), 403, 'insufficient_scope'],
      [await issuer.token('1', { aud: 'https://other.example.com' }), 401, 'invalid_token'],
      [await issuer.token('1', { iss: 'https://id.example.com' }), 401, 'invalid_token'],
      [await issuer.token('1', { iat: now - 900, exp: now - 600 }), 401, 'invalid_token'],
      [await issuer.token('1', { typ: 'JWT' }), 401, 'invalid_token'],
      [await issuer.token('1', { client_id: undefined }), 401, 'invalid_token'],
      [await issuer.token('1', { cnf: { jkt: '0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I' } }), 401, 'invalid_token'],
      [good.slice(0, -8) + 'AAAAAAAA', 401, 'invalid_token'],
      [`eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.${good.split('.')[1]}.`, 401, 'invalid_token'],
      ['x', 401, 'invalid_token'],
    ]) {
      const answer = await call(port, token)
      assert.equal(answer.status, status, token)
      assert.match(answer.headers.get('WWW-Authenticate'), new RegExp(`error="${error}"`))
    }
  })

  if (guarded) {
    test(`${name}: a revoked token is refused within a second`, async () => {
      const { port } = addresses[name]
      const [revoked, other] = [await issuer.token(`${name} 3`), await issuer.token(`${name} 4`)]
      await once(port, revoked, 200)
      await issuer.revoke(`${name} 3`)
      assert.ok((await once(port, revoked, 401)) < 1000)
      assert.equal((await call(port, other)).status, 200)
    })

    test(`${name}: clients cannot set the identity headers themselves`, async () => {
      const { port, direct } = addresses[name]
      const good = await issuer.token(`${name} 5`)
      await once(port, good, 200)
      assert.equal((await call(port, good, { 'X-Portcullis-Subject': 'root' })).status, 403)
      assert.equal((await call(port, good, {}, '/Orders')).status, 403)
      assert.equal((await call(port, good, {}, '/orders%2f')).status, 403)
      assert.equal((await call(direct, good)).status, 403)
    })
  } else {
    // What the documentation says is not guaranteed.
    test(`${name}: a revoked token passes until it expires`, async () => {
      const { port } = addresses[name]
      const token = await issuer.token(`${name} 3`)
      assert.equal((await call(port, token)).status, 200)
      await issuer.revoke(`${name} 3`)
      assert.equal((await call(port, token)).status, 200)
    })
  }
}
