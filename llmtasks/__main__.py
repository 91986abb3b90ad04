"""`python -m llmtasks` is `llmtasks`."""

from llmtasks.cli import main

if __name__ == "__main__":
    main()
