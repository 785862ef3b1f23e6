// An orders API behind a proxy that asks portcullis-guard. npm install express
import express from 'express'

const app = express()
// Match paths case-sensitively, like the routes of the guard.
app.enable('case sensitive routing')

// The caller, as determined by the guard. Only the proxy can connect to this service, so the headers
// cannot be forged. A request without them did not pass the guard.
app.use((request, response, next) => {
  const subject = request.get('X-Portcullis-Subject')
  if (!subject) return response.sendStatus(403)
  request.caller = {
    subject,
    client: request.get('X-Portcullis-Client'),
    scopes: request.get('X-Portcullis-Scope')?.split(' ') ?? [],
  }
  next()
})

app.get('/orders', (request, response) => {
  response.json({ orders_of: request.caller.subject, may_write: request.caller.scopes.includes('orders:write') })
})

app.listen(process.env.PORT ?? 3000, '127.0.0.1')
