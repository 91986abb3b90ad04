"""`python -m llmtasks.simulator`."""

from llmtasks.simulator.command import simulator

simulator(prog_name="python -m llmtasks.simulator")
