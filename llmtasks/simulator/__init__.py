"""A provider over HTTP for demos, tests and benchmarks: quotas, latency, faults, streaming.

    config.py            the frozen values: Config, Quota, Latency, Fault
    quota.py             pure: token buckets and what a request costs
    faults.py            which fault strikes which request
    answers.py           pure: the deterministic answer to a prompt
    protocol.py          what both provider protocols have in common: Ask, Answer, Protocol
    openai_wire.py       the OpenAI protocol's JSON and headers
    anthropic_wire.py    the Anthropic protocol's JSON and headers
    journal.py           the log and the counts
    server.py            the HTTP server: one request in plain steps
    control.py           `/_sim/`: stats, log, faults, quota, latency, reset
    command.py           the command line

It enforces quotas exactly as configured and notes every request, so it is the oracle of the tests
that ask whether the fleet stayed under its limits. It imports nothing else of this project.
"""
