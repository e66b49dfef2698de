"""The slash commands of the chat.

A new command is a function in the module that it belongs to, registered there with
``@COMMANDS.add("/name [ARGUMENT]", "help")``.
"""

from . import conversation, general, sessions, settings
from .command import Commands

COMMANDS = Commands(
    conversation.COMMANDS | settings.COMMANDS | sessions.COMMANDS | general.COMMANDS
)
