// The server under test: the real binary on a temporary SQLite database, set up by its own command line.

import { execFile, spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { openSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

export const USERNAME = 'alice'
export const PASSWORD = 'gravel-otter-92-lamp'
export const AUDIENCE = 'https://api.example'

const BINARY = process.env.PORTCULLIS_BIN ?? new URL('../../target/debug/portcullis', import.meta.url).pathname

/** A free port, followed by another free one. */
export async function freePort() {
  for (;;) {
    const first = createServer()
    const port = await new Promise((resolve) => first.listen(0, '127.0.0.1', () => resolve(first.address().port)))
    const second = createServer()
    const free = await new Promise((resolve) => {
      second.once('error', () => resolve(false))
      if (port === 65535) resolve(false)
      else second.listen(port + 1, '127.0.0.1', () => resolve(true))
    })
    first.close()
    if (second.listening) second.close()
    if (free) return port
  }
}

/** Starts `portcullis serve` with alice and an orders API. */
export async function serve(settings = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'portcullis-interop-'))
  const port = await freePort()
  const issuer = `http://localhost:${port}`
  // Nothing is inherited: DATABASE_URL, PORT and RUST_LOG would be settings.
  const env = {
    PATH: process.env.PATH,
    PORTCULLIS__ISSUER: issuer,
    PORTCULLIS__LISTEN__PUBLIC: `localhost:${port}`,
    PORTCULLIS__LISTEN__MANAGEMENT: '127.0.0.1:0',
    PORTCULLIS__SHUTDOWN__DELAY: '0s',
    PORTCULLIS__DATA_DIR: join(folder, 'data'),
    PORTCULLIS__KEYS__KEK: `file:${join(folder, 'kek')}`,
    PORTCULLIS__LOG__LEVEL: 'info,actix_server=warn',
    ...settings,
  }
  const command = (...words) => portcullis(env, folder, ...words)
  await command('resource', 'create', '--audience', AUDIENCE, '--name', 'Orders', '--scope', 'orders:read=See your orders')
  const person = ['user', 'create', USERNAME, '--name', 'Alice', '--email', 'alice@mail.example', '--password-stdin']
  const [{ sub }] = await command(...person, { stdin: PASSWORD })

  const log = join(folder, 'log')
  const child = spawn(BINARY, ['serve'], { env, cwd: folder, stdio: ['ignore', 'ignore', openSync(log, 'w')] })
  const stopped = new Promise((resolve) => child.once('exit', resolve))
  await answers(`${issuer}/.well-known/openid-configuration`, child, log)
  return {
    issuer,
    sub,
    command,
    /** Registers an application with the options of `client create`. */
    client: (...options) =>
      command('client', 'create', '--resource', AUDIENCE, '--scope', 'openid profile email orders:read', ...options),
    log: () => readFile(log, 'utf8'),
    async stop() {
      child.kill('SIGTERM')
      await Promise.race([stopped, sleep(5000, null, { ref: false }).then(() => child.kill('SIGKILL'))])
      await rm(folder, { recursive: true, force: true })
    },
  }
}

/** Starts `portcullis demo` and reads what it prints. */
export async function demo() {
  const port = await freePort()
  const child = spawn(BINARY, ['demo', '--port', `${port}`], {
    env: { PATH: process.env.PATH, TMPDIR: tmpdir() },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const stopped = new Promise((resolve) => child.once('exit', resolve))
  let text = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (more) => (text += more))
  const line = (label) => text.match(new RegExp(`^ *${label} +(\\S+)$`, 'm'))?.[1]
  for (let waited = 0; !text.includes('Ctrl-C'); waited += 50) {
    if (waited > 30_000 || child.exitCode !== null) throw new Error(`the demo does not start:\n${text}`)
    await sleep(50)
  }
  return {
    home: line('Open'),
    username: line('Sign in as'),
    password: line('Password'),
    issuer: line('issuer'),
    async stop() {
      child.kill('SIGTERM')
      await Promise.race([stopped, sleep(5000, null, { ref: false }).then(() => child.kill('SIGKILL'))])
    },
  }
}

function portcullis(env, cwd, ...words) {
  const { stdin } = typeof words.at(-1) === 'object' ? words.pop() : {}
  return new Promise((resolve, reject) => {
    const child = execFile(BINARY, [...words, '--format', 'json'], { env, cwd }, (error, stdout, stderr) =>
      error ? reject(new Error(`portcullis ${words.join(' ')}: ${stderr}`)) : resolve(JSON.parse(stdout)),
    )
    child.stdin.end(stdin)
  })
}

async function answers(url, child, log) {
  for (let waited = 0; waited < 30_000; waited += 50) {
    if (child.exitCode !== null) break
    if (await fetch(url).then((response) => response.ok, () => false)) return
    await sleep(50)
  }
  child.kill('SIGKILL')
  throw new Error(`the server does not start:\n${await readFile(log, 'utf8')}`)
}
