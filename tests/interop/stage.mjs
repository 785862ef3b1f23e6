// The programs around a service: the guard and nginx, configured as in the documentation except for the addresses,
// and the services of docs/examples.

import { spawn } from 'node:child_process'
import { existsSync, openSync, readFileSync } from 'node:fs'
import { chmod, cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import { freePort } from './portcullis.mjs'

const here = new URL('.', import.meta.url).pathname
const examples = join(here, '../../docs/examples')
const server = process.env.PORTCULLIS_BIN ?? join(here, '../../target/debug/portcullis')
const GUARD = process.env.PORTCULLIS_GUARD_BIN ?? join(dirname(server), 'portcullis-guard')
const PYTHON = process.env.PYTHON ?? 'python3'
const NGINX = ['/usr/sbin/nginx', '/usr/bin/nginx'].find(existsSync) ?? 'nginx'

/** The audience of the examples. */
export const AUDIENCE = 'https://orders.example.com'

export class Stage {
  #folder
  #issuer
  #children = []

  /** For the tokens of this issuer. */
  static async build(issuer) {
    const stage = new Stage()
    stage.#issuer = issuer
    stage.#folder = await mkdtemp(join(tmpdir(), 'portcullis-stage-'))
    // The account that nginx works under must reach it.
    await chmod(stage.#folder, 0o755)
    await symlink(join(here, 'node_modules'), join(stage.#folder, 'node_modules'))
    return stage
  }

  /** A guard with the routes of the documentation. Returns its port. */
  async guard({ client_id, client_secret }) {
    const port = await freePort()
    const settings = await this.#example('guard.toml', { '127.0.0.1:9180': port })
    const text = settings
      .replace('https://id.example.com', this.#issuer)
      .replace('orders-guard', client_id)
      .replace('client_secret_file', '# client_secret_file')
    await writeFile(join(this.#folder, 'guard.toml'), text)
    const env = { PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET: client_secret, PORTCULLIS_GUARD__SUBSCRIBER__INSTANCE: 'web-1' }
    await this.#start('guard', port, env, GUARD, '--config', 'guard.toml')
    return port
  }

  /** A service of docs/examples. Returns its port. */
  async service(file) {
    const port = await freePort()
    await cp(join(examples, file), join(this.#folder, file))
    const env = { PORT: port, ISSUER: this.#issuer, AUDIENCE, PYTHONDONTWRITEBYTECODE: '1' }
    await this.#start(file, port, env, file.endsWith('.py') ? PYTHON : process.execPath, file)
    return port
  }

  /** nginx before a service. Returns its port. */
  async nginx(guard, service) {
    const port = await freePort()
    const name = `nginx-${port}`
    const addresses = { '127.0.0.1:9180': guard, '127.0.0.1:3000': service, '127.0.0.1:8080': port }
    const site = await this.#example('nginx.conf', addresses)
    const kinds = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    const paths = kinds.map((kind) => `${kind}_temp_path ${name}-${kind};`).join(' ')
    const user = process.getuid() === 0 ? 'user root;' : ''
    const main = `daemon off; master_process off; ${user} pid ${name}.pid; error_log stderr; events {}`
    await writeFile(join(this.#folder, `${name}.conf`), `${main}\nhttp { access_log off; ${paths}\n${site} }`)
    await this.#start(name, port, {}, NGINX, '-p', this.#folder, '-c', `${name}.conf`, '-e', 'stderr')
    return port
  }

  async stop() {
    for (const child of this.#children) child.kill('SIGTERM')
    await rm(this.#folder, { recursive: true, force: true })
  }

  async #example(file, addresses) {
    const text = await readFile(join(examples, file), 'utf8')
    return Object.entries(addresses).reduce((filled, [found, port]) => filled.replace(found, `127.0.0.1:${port}`), text)
  }

  /** Starts a program and waits until it listens. */
  async #start(name, port, env, program, ...words) {
    const log = join(this.#folder, `${name}.log`)
    const stdio = ['ignore', openSync(log, 'w'), openSync(log, 'a')]
    const child = spawn(program, words, { cwd: this.#folder, env: { PATH: process.env.PATH, ...env }, stdio })
    const failed = new Promise((_, reject) => child.once('error', reject))
    this.#children.push(child)
    for (let waited = 0; waited < 30_000 && child.exitCode === null; waited += 50) {
      const answers = fetch(`http://127.0.0.1:${port}/`).then(() => true, () => false)
      if (await Promise.race([answers, failed])) return
      await sleep(50)
    }
    throw new Error(`${name} does not start:\n${readFileSync(log)}`)
  }
}

/** Asks a service for the orders. */
export function call(port, token, headers = {}, target = '/orders') {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {}
  return fetch(`http://127.0.0.1:${port}${target}`, { headers: { ...authorization, ...headers } })
}

/** Until the guard has its first news everything is 503. Returns after how many milliseconds a status came. */
export async function once(port, token, status) {
  const begin = Date.now()
  for (;;) {
    const answer = await call(port, token)
    if (answer.status === status) return Date.now() - begin
    if (Date.now() - begin > 10_000) throw new Error(`${answer.status} instead of ${status}`)
    await sleep(5)
  }
}
