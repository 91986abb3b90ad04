"""Pure functions over text: nothing here reads, writes or waits."""
