"""Worker processes: composition root, Celery's signals, and the periodic work."""
