// The services of docs/protect-a-service.md, run as they stand there: behind nginx and the guard, and on their own
// with a JWT library, with what each guarantees.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { openSync, readFileSync } from 'node:fs'
import { chmod, cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { AUDIENCE, SUBSCRIBER, serve } from './issuer.mjs'
import { freePort } from './portcullis.mjs'

const here = new URL('.', import.meta.url).pathname
const examples = join(here, '../../docs/examples')
const server = process.env.PORTCULLIS_BIN ?? join(here, '../../target/debug/portcullis')
const GUARD = process.env.PORTCULLIS_GUARD_BIN ?? join(dirname(server), 'portcullis-guard')
const PYTHON = process.env.PYTHON ?? 'python3'
const NGINX = ['/usr/sbin/nginx', '/usr/bin/nginx'].find(existsSync) ?? 'nginx'

const SERVICES = {
  'express, guarded': { file: 'express-guarded.mjs', program: process.execPath, guarded: true },
  'FastAPI, guarded': { file: 'fastapi_guarded.py', program: PYTHON, guarded: true },
  'express with jose': { file: 'express-jose.mjs', program: process.execPath },
  'FastAPI with PyJWT': { file: 'fastapi_pyjwt.py', program: PYTHON },
}

let issuer, folder
const children = []
const addresses = {}

/** Starts a program and waits until it listens. */
async function start(name, port, program, ...words) {
  const log = join(folder, `${name}.log`)
  const env = {
    PATH: process.env.PATH, PORT: port, ISSUER: issuer.issuer, AUDIENCE, PYTHONDONTWRITEBYTECODE: '1',
    PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET: SUBSCRIBER.secret,
  }
  const stdio = ['ignore', openSync(log, 'w'), openSync(log, 'a')]
  const child = spawn(program, words, { cwd: folder, env, stdio })
  const failed = new Promise((_, reject) => child.once('error', reject))
  children.push(child)
  for (let waited = 0; waited < 30_000 && child.exitCode === null; waited += 50) {
    const answers = fetch(`http://127.0.0.1:${port}/`).then(() => true, () => false)
    if (await Promise.race([answers, failed])) return
    await sleep(50)
  }
  throw new Error(`${name} does not start:\n${readFileSync(log)}`)
}

/** A guard with the routes of the documentation, for this issuer. */
async function startGuard(port) {
  const text = await readFile(join(examples, 'guard.toml'), 'utf8')
  const settings = text
    .replace('https://id.example.com', issuer.issuer)
    .replace('127.0.0.1:9180', `127.0.0.1:${port}`)
    .replace('client_secret_file', '# client_secret_file')
  await writeFile(join(folder, 'guard.toml'), settings)
  await start('guard', port, GUARD, '--config', 'guard.toml')
}

/** nginx as in the documentation, before a service. */
async function startNginx(name, guard, service) {
  const port = await freePort()
  const text = await readFile(join(examples, 'nginx.conf'), 'utf8')
  const site = text
    .replace('127.0.0.1:9180', `127.0.0.1:${guard}`)
    .replace('127.0.0.1:3000', `127.0.0.1:${service}`)
    .replace('127.0.0.1:8080', `127.0.0.1:${port}`)
  const paths = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${name}-${kind};`)
  const user = process.getuid() === 0 ? 'user root;' : ''
  await writeFile(
    join(folder, `${name}.conf`),
    `daemon off; master_process off; ${user} pid ${name}.pid; error_log stderr; events {}\nhttp { access_log off; ${paths.join(' ')}\n${site} }`,
  )
  await start(name, port, NGINX, '-p', folder, '-c', `${name}.conf`, '-e', 'stderr')
  return port
}

before(async () => {
  issuer = await serve()
  folder = await mkdtemp(join(tmpdir(), 'portcullis-recipes-'))
  // The account that nginx works under must reach it.
  await chmod(folder, 0o755)
  for (const { file } of Object.values(SERVICES)) await cp(join(examples, file), join(folder, file))
  await symlink(join(here, 'node_modules'), join(folder, 'node_modules'))
  const guard = await freePort()
  await startGuard(guard)
  await Promise.all(
    Object.entries(SERVICES).map(async ([name, { file, program, guarded }], at) => {
      const port = await freePort()
      await start(`service-${at}`, port, program, file)
      addresses[name] = { direct: port, port: guarded ? await startNginx(`nginx-${at}`, guard, port) : port }
    }),
  )
})
after(async () => {
  for (const child of children) child.kill('SIGTERM')
  issuer?.stop()
  if (folder) await rm(folder, { recursive: true, force: true })
})

function call(port, token, headers = {}, target = '/orders') {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {}
  return fetch(`http://127.0.0.1:${port}${target}`, { headers: { ...authorization, ...headers } })
}

/** Until the guard has its first news everything is 503. */
async function once(port, token, status) {
  const begin = Date.now()
  for (;;) {
    const answer = await call(port, token)
    if (answer.status === status) return Date.now() - begin
    assert.ok(Date.now() - begin < 10_000, `${answer.status} instead of ${status}`)
    await sleep(5)
  }
}

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

    test(`${name}: nobody says himself who he is`, async () => {
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
