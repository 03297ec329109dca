"""Commands keep compiled programs between runs: bounded, where the user wants them, and with the same bits."""

import os

import jax
import pytest

from bert_jax import compilation_cache


@pytest.fixture
def no_cache():
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_compilations_are_kept_in_the_users_cache_folder(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.keep()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "bert_jax" / "xla")
    assert (tmp_path / "bert_jax" / "xla").is_dir()


def test_a_cache_folder_that_is_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    assert before
    compilation_cache.keep()
    assert jax.config.jax_compilation_cache_dir == before


def test_without_a_folder_to_write_to_nothing_is_kept(no_cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.keep()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_cache_is_off_where_jax_is_told_so(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compilation_cache.keep()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


def test_what_was_used_least_recently_goes_first(tmp_path):
    for age, name in enumerate(["newest", "middle", "oldest"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "oldest", (2e9, 1e9 - 9))  # read since
    compilation_cache._remove_oldest(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "oldest"]
    compilation_cache._remove_oldest(tmp_path, 0)
    assert not list(tmp_path.iterdir())
