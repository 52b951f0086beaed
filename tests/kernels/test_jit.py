"""The kernel cache: never stale after an edit, never fatal when damaged or not writable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flashllm
from flashllm.errors import OutOfBudget
from flashllm.kernels import compiling, jit

PACKAGE = Path(flashllm.__file__).parent

PROGRAM = """
import sys
import numpy as np
from flashllm import kernels
from flashllm.errors import OutOfBudget
from flashllm.kernels import compiling, jit
from flashllm.kernels.weights import Activations

fresh = not any(jit.cache_directory().iterdir())
backend = kernels.load("cpu", 1)
x = Activations(1, 64)
x.values[:] = 5
program = backend.program(1)
program.quantize(x)
program.run(1)
print(int(x.codes[0, 0]), fresh, jit.cache_directory())
"""


@pytest.fixture
def run(tmp_path):
    """Run PROGRAM on a copy of the package that a test may edit: (code, was new, directory)."""
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / "flashllm", ignore=shutil.ignore_patterns("__pycache__"))

    def run(edit=None, **environment):
        if edit:
            path, old, new = edit
            source = copy / "flashllm" / "kernels" / path
            text = source.read_text()
            assert old in text
            source.write_text(text.replace(old, new))
        env = {**os.environ, "FLASHLLM_CACHE": str(tmp_path / "cache"), **environment}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=copy, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        code, fresh, directory = done.stdout.split(maxsplit=2)
        return int(code), fresh == "True", Path(directory.strip())

    return run


def test_an_edited_callee_is_never_served_from_the_cache(run):
    """quantize calls quantize_block, which calls intrinsics of another file: edit that one."""
    assert run()[:2] == (127, True)
    assert run()[:2] == (127, False)
    stored = "b.trunc(value, ir.VectorType(I8, 16))"
    edit = ("simd/memory.py", stored, "ir.Constant(ir.VectorType(I8, 16), [7] * 16)")
    assert run(edit)[:2] == (7, True)


def test_only_a_model_s_kernels_count_as_compiled(tmp_path, monkeypatch):
    """Measuring bandwidth compiles one kernel; a chat would still begin with a long silence."""
    monkeypatch.setattr(jit, "cache_directory", lambda: tmp_path)
    (tmp_path / "bandwidth._read-25.py311.nbi").touch()
    assert not jit.kernels_are_compiled()
    (tmp_path / "dense.matmul_q8-300.py311.nbi").touch()
    assert jit.kernels_are_compiled()


def test_a_damaged_cache_is_compiled_again(run):
    _, _, directory = run()
    for path in directory.iterdir():
        path.write_bytes(path.read_bytes()[:-20] + b"\0" * 20 if path.suffix == ".nbc" else b"x")
    assert run()[0] == 127


def test_a_cache_that_cannot_be_written_falls_back(run, tmp_path):
    blocked = tmp_path / "a-file"
    blocked.write_text("not a directory")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code, _, directory = run(FLASHLLM_CACHE=str(blocked), TMPDIR=str(temporary))
    assert code == 127
    assert directory.is_relative_to(temporary)


def test_another_cpu_has_its_own_code(run):
    _, _, ours = run()
    code, fresh, theirs = run(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2")
    assert (code, fresh) == (127, True)
    assert ours != theirs


APART = """
import sys
from flashllm import kernels
from flashllm.kernels import compiling, jit
from flashllm.kernels.weights import Activations

ops = [getattr(__import__(f"flashllm.kernels.cpu.{module}", fromlist=[name]), name)
       for module, name in (("norms", "rms_norm"), ("norms", "layer_norm"), ("activation",
       "quantize"), ("elementwise", "copy"))]
if "broken" in sys.argv:
    sys.executable = "/nowhere/python"
compiling.compile_apart(ops[: int(sys.argv[1])], compiling.FEW)
print([op.is_compiled for op in ops])
print(ops[0].address > 0, ops[0].is_compiled)
"""


@pytest.mark.parametrize(
    ("arguments", "compiled"), [(["4"], True), (["3"], False), (["4", "broken"], False)], ids=str
)
def test_many_kernels_are_compiled_in_a_process_apart(tmp_path, arguments, compiled):
    """Few are not, and where no process can be had they are compiled when they are used."""
    env = {**os.environ, "FLASHLLM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", APART, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines() == [str([compiled] * 4), "True True"]


def test_a_container_too_small_for_the_compiler_is_told_so_before_anything_is_killed(monkeypatch):
    class Missing:
        is_compiled = False

        def __init__(self, name):
            self.name = name

    ops = [Missing(f"module:{i}") for i in range(compiling.FEW + 1)]
    monkeypatch.setattr(compiling.subprocess, "run", lambda *args, **kwargs: pytest.fail("started"))
    monkeypatch.setattr(compiling.machine, "cgroup_memory_free", lambda: 150_000_000)
    with pytest.raises(OutOfBudget, match=r"4 kernels .* 180 MB .* 150 MB left; run .* once"):
        compiling.compile_apart(ops)
    compiling.compile_apart(ops[:2], few=2)  # they are compiled here, whatever there is
