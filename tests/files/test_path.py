"""What is said about a path that can't be written."""

from __future__ import annotations

import doctest

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from segue import ChatSession, PromptCacheError, SessionFileError
from segue.files import path as path_module
from segue.mlx.stored.prompt_cache import write_cache_file
from segue.testing import FakeEngine


def write_session(path):
    session = ChatSession(FakeEngine(["hello"]))
    session.respond("hi")
    session.save(path)


def write_cache(path):
    layer = KVCache()
    layer.update_and_fetch(mx.zeros((1, 1, 2, 4)), mx.zeros((1, 1, 2, 4)))
    write_cache_file(path, [layer], {})


@pytest.mark.parametrize(
    ("write", "kind"), [(write_session, SessionFileError), (write_cache, PromptCacheError)]
)
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("folder", "Name a file in that folder."),
        ("missing/x", "Make its folder first, or write to another."),
        ("file/x", "Make its folder first, or write to another."),
    ],
)
def test_what_to_do_fits_what_is_wrong(tmp_path, write, kind, name, remedy):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(kind) as raised:
        write(tmp_path / name)
    assert raised.value.remedy == remedy
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "folder"]


def test_the_examples_run():
    assert doctest.testmod(path_module).failed == 0
