"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import segue
from segue import errors
from segue.installing import install_command


def test_the_public_names_are_these():
    assert segue.__all__ == [
        "AnswerError",
        "BackendMissingError",
        "CacheConfig",
        "ChatSession",
        "ConfigurationError",
        "ContextLengthError",
        "Conversation",
        "FinishReason",
        "ForkedProcessError",
        "GenerationConfig",
        "GenerationError",
        "GenerationResponse",
        "GrammarError",
        "HistoryError",
        "Lark",
        "LostWordsError",
        "Message",
        "MessageError",
        "MissReason",
        "MissingTemplateError",
        "MlxEngine",
        "ModelFormatError",
        "ModelLoadError",
        "ModelNotFoundError",
        "ModelWarning",
        "PerformanceWarning",
        "PromptCache",
        "PromptCacheError",
        "PromptCacheFormatError",
        "PromptCacheMismatchError",
        "Regex",
        "Reply",
        "Reuse",
        "Role",
        "SegueError",
        "SessionBusyError",
        "SessionFile",
        "SessionFileError",
        "SessionFileFormatError",
        "SessionLockedError",
        "SessionNotFoundError",
        "SessionWarning",
        "TemplateError",
        "TemplateWarning",
        "Text",
        "TextKind",
        "ToolCall",
        "TurnPreview",
        "TurnUsage",
        "UnknownArgumentError",
        "UnsupportedFeatureError",
        "UnsupportedModelError",
        "Usage",
        "__version__",
        "load",
        "load_prompt_cache",
    ]


def test_every_public_name_is_there():
    for name in segue.__all__:
        assert getattr(segue, name) is not None


def test_every_error_is_public_and_in_one_tree():
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, (errors.SegueError, Warning))
    }
    assert tree <= set(segue.__all__)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


HIDE_MLX = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mlx", "mlx_lm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


def test_importing_segue_imports_no_mlx_and_no_transformers():
    code = "import sys, segue; print({'mlx', 'mlx_lm', 'transformers'} & set(sys.modules))"
    assert run(code) == "set()\n"


def test_without_mlx_segue_imports_and_load_says_what_to_install():
    code = HIDE_MLX + (
        "import segue\n"
        "for use in (lambda: segue.load('smollm2'), lambda: segue.MlxEngine):\n"
        "    try: use()\n"
        "    except segue.BackendMissingError as error: print(error)\n"
    )
    lines = run(code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert install_command("cpu") in line
        assert "cuda13" in line


def test_without_mlx_a_session_runs_on_another_engine():
    code = HIDE_MLX + (
        "from segue import ChatSession\n"
        "from segue.testing import FakeEngine\n"
        "print(ChatSession(FakeEngine(['hello'])).respond('hi'))\n"
    )
    assert run(code) == "hello\n"


def test_help_imports_neither_mlx_nor_transformers():
    code = (
        "import sys\n"
        "from segue.cli.main import main\n"
        "try: main(['chat', '--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers') if m in sys.modules])\n"
    )
    assert run(code).endswith("[]\n")


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(segue, "nothing")
