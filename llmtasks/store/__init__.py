"""The truth, in SQL: documents, jobs, batches, results, paid calls, workers.

`tables` describes it, `schema` migrates it, `engine` opens it; every other module here is one
aggregate with all of its queries, as functions that take the `Database` first. SQLite and
PostgreSQL give the same answers.
"""
