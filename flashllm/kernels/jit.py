"""The only compile wrapper: flags, the kernel cache, and what the compiler targets.

Every kernel is an `op`: a native function `op(args, rows, thread, threads)` of four integers, so
that a program (program.py) is an array of addresses and arguments that threads run without Python.

The cache lives in the user's cache directory, in a folder named by a hash of everything that can
change machine code: the sources of this package, numba, llvmlite and the CPU the code is for.
Numba's own stamp covers only the file a function is in: editing a callee in another file left its
caller's cached code silently stale.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import platformdirs
from numba import types
from numba.core import caching, config, sigutils
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher

_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": False}
"""No fastmath: it may reorder sums, and a token must not depend on how work was split."""
_OP_SIGNATURE = ((types.intp, types.intp, types.intp, types.intp), types.void)
_KEPT_VERSIONS = 8


def cpu_name() -> str:
    """The LLVM name of the CPU that kernels are compiled for."""
    return str(config.CPU_NAME or llvm.get_host_cpu_name())


@functools.cache
def cpu_features() -> frozenset[str]:
    """LLVM's names of the instruction-set features that kernels may use, such as "avx512vnni".

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, which Numba reads, narrow them: that is how the tests
    run every code path on one machine.
    """
    if config.CPU_FEATURES is not None:
        listed = str(config.CPU_FEATURES).split(",")
        return frozenset(name[1:] for name in listed if name.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def architecture() -> str:
    """ "x86", "arm" (64-bit) or "other": the family of instructions to choose from."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return "x86"
    return "arm" if machine in ("aarch64", "arm64") else "other"


@functools.cache
def cache_version() -> str:
    """A hash that changes whenever the machine code of a kernel could."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode())
        digest.update(source.read_bytes())
    target = (numba.__version__, llvmlite.__version__, cpu_name(), sorted(cpu_features()))
    digest.update(repr(target).encode())
    return digest.hexdigest()[:16]


@functools.cache
def cache_directory() -> Path:
    """Where compiled kernels are kept: FLASHLLM_CACHE, else the user's cache directory.

    A directory that cannot be written falls back to a temporary one: kernels then compile once per
    boot instead of once.
    """
    named = os.environ.get("FLASHLLM_CACHE")
    base = Path(named) if named else platformdirs.user_cache_path("flashllm")
    for root in (base / "kernels", Path(tempfile.gettempdir()) / f"flashllm-kernels-{_user()}"):
        directory = root / cache_version()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError:
            continue
        _prune(root)
        return directory
    return directory


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def _prune(root: Path) -> None:
    """Drop the versions used longest ago: each edit of a kernel starts a new folder."""
    versions = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for stale in versions[_KEPT_VERSIONS:]:
        shutil.rmtree(stale, ignore_errors=True)


def kernels_are_compiled() -> bool:
    """Whether this machine has run a model on these kernels before, so that starting is quick."""
    return any(cache_directory().glob("dense.*.nbi"))


class _Locator(caching._CacheLocator):
    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def get_cache_path(self) -> str:
        return str(cache_directory())

    def get_source_stamp(self) -> str:
        return cache_version()

    def get_disambiguator(self) -> str:
        return str(self._function.__code__.co_firstlineno)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        return cls(py_func)


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes: list[type[object]] = [_Locator]  # noqa: RUF012

    def check_cachable(self, cres: Any) -> bool:
        """Whether the code holds no address of this process; Numba's own check would warn."""
        return not (cres.lifted or cres.library.has_dynamic_globals)


_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError)
"""What reading a damaged file of the cache raises."""


class _KernelCache(caching.FunctionCache):
    _impl_class = _CacheImpl

    def has(self, signature: Any, context: Any) -> bool:
        """Whether the index lists code for a signature; that of a damaged one lists nothing."""
        context.refresh()
        try:
            listed = self._cache_file._load_index()
        except (OSError, *_DAMAGE):
            return False
        return self._index_key(signature, context.codegen()) in listed

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The cached code, or None if there is none or the file is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except _DAMAGE:
            self.flush()
            return None


class Op:
    """A kernel in Python, compiled at the first request for its address."""

    def __init__(self, function: Callable[..., None]):
        self.__doc__ = function.__doc__
        self._function = function

    @property
    def name(self) -> str:
        """Where it is defined: "module:function"."""
        return f"{self._function.__module__}:{self._function.__name__}"

    @property
    def is_compiled(self) -> bool:
        """Whether its native code is in the cache, so that asking for the address is quick."""
        function = self._compiled
        there: bool = function._cache.has(function._sig, function._targetdescr.target_context)
        return there

    def prepare(self) -> None:
        """Compile it, or load it from the cache, unless that is done."""
        _ = self.address

    @functools.cached_property
    def address(self) -> int:
        """Address of the native code; compiles it, or loads it from the cache."""
        self._compiled.compile()
        address: int = self._compiled.address
        return address

    @functools.cached_property
    def _compiled(self) -> Any:
        compiled: Any = CFunc(self._function, _OP_SIGNATURE, {}, {"nopython": True, **_FLAGS})
        compiled._cache = _KernelCache(self._function)
        return compiled


def op(function: Callable[..., None]) -> Op:
    """Make `function(args, rows, thread, threads)` a kernel a program can run."""
    return Op(function)


def inline(function: Callable[..., Any]) -> Any:
    """Make `function` callable from kernels; LLVM folds it into its callers."""
    return numba.njit(**_FLAGS)(function)


class Entry(CPUDispatcher):
    """A function that Python calls, compiled for one signature: at the first call, or ahead."""

    def __init__(self, function: Callable[..., Any], arguments: str, *, nogil: bool):
        super().__init__(function, targetoptions={"nopython": True, "nogil": nogil, **_FLAGS})
        self._cache = _KernelCache(function)
        self._arguments, _ = sigutils.normalize_signature(arguments)

    @property
    def name(self) -> str:
        """Where it is defined: "module:function"."""
        return f"{self.py_func.__module__}:{self.py_func.__name__}"

    @property
    def is_compiled(self) -> bool:
        """Whether its native code is in the cache."""
        there: bool = self._cache.has(self._arguments, self.targetctx)
        return there

    def prepare(self) -> None:
        """Compile it, or load it from the cache, unless that is done."""
        self.compile(self._arguments)


def entry(arguments: str) -> Callable[[Callable[..., Any]], Entry]:
    """Make a function callable from Python, with the GIL released.

    arguments: Numba's names of their types, such as "(intp, float32[::1])".
    """
    return functools.partial(Entry, arguments=arguments, nogil=True)


def brief(arguments: str) -> Callable[[Callable[..., Any]], Entry]:
    """As entry, for what takes microseconds: the GIL is kept, which other threads that read would
    give back only after as many.
    """
    return functools.partial(Entry, arguments=arguments, nogil=False)
