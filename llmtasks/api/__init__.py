"""The HTTP API: documents, jobs, batches, and answers while they are written.

    app.py        composition: routes, middleware, what a server owns from start to stop
    callers.py    who asks: a bearer token names a tenant
    errors.py     every typed error as a status and one shape of JSON
    protocol.py   connections, and whom they do not wait for
    guards.py     what is refused before anything reads it: size, foreign pages
    sse.py        streams of events, whose clients may leave
    polls.py      one look at the database for all who watch the same
    schemas.py    bodies and answers
    routes/       one module a noun

A server keeps nothing between requests: any number of them serve behind a load balancer.
"""
