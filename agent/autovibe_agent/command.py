"""Agent type `command`: any program. Without a command, the prompt is a shell script."""

from autovibe_agent.base import CodingAgent


class CommandAgent(CodingAgent):
    """Runs the assignment's argv with the prompt on its standard input."""

    NAME = "command"

    def argv(self) -> list[str]:
        return self.assignment.command or ["/bin/sh", "-s"]

    def stdin(self) -> bytes:
        return self.assignment.prompt.encode()
