"""The prompt, and a Ctrl-C that comes when it has just ended."""

from __future__ import annotations

import pytest
from prompt_toolkit.application import Application, create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from segue.cli.chat.prompt.prompter import Prompter

pytestmark = pytest.mark.usefixtures("data_folder")


def test_a_ctrl_c_between_enter_and_the_end_of_the_prompt_drops_the_line(monkeypatch):
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompter = Prompter([], warn=print)
        cleanup = Application.cancel_and_wait_for_background_tasks

        async def interrupted(self):
            # The application has its answer, but a signal is still delivered to it.
            future, self.future = self.future, None
            self.key_processor.send_sigint()
            self.future = future
            await cleanup(self)

        keys.send_text("hi\r")
        with monkeypatch.context() as patch:
            patch.setattr(Application, "cancel_and_wait_for_background_tasks", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prompter.ask()
        keys.send_text("ho\r")
        assert prompter.ask() == "ho"


def test_a_ctrl_c_while_somebody_types_drops_the_line():
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompter = Prompter([], warn=print)
        keys.send_text("half a mess\x03")
        with pytest.raises(KeyboardInterrupt):
            prompter.ask()
