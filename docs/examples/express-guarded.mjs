// An orders API behind a proxy that asks portcullis-guard. npm install express
import express from 'express'

const app = express()
// Paths mean what the guard's routes mean.
app.enable('case sensitive routing')

// Who calls, as the guard says it. Nobody else can set these headers, since this service listens
// for the proxy alone; a request without them has not come by it.
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
