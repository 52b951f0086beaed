"""Worker threads that run a program together: persistent, parked between steps.

A program is an array of native instructions. Every thread of the team walks it; an instruction
marked so waits until all threads have finished those before it. Between runs workers spin briefly,
because the next layer follows within microseconds, then park on a lock without using the CPU.

Measured on two cores: a Numba parallel region starts in 89 us (workqueue) or 1.3 us (omp, which
needs a system library); this barrier costs 0.03 to 0.2 us.
"""

from __future__ import annotations

import ctypes
import sys
import threading

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from flashllm.closing import Closing
from flashllm.errors import EngineError
from flashllm.kernels import jit
from flashllm.kernels.simd import I32, I64, load_int

INSTRUCTION_WORDS = 3
"""int64 words of one instruction: the op's address, whether it waits, its arguments' address."""

_SPINS_BEFORE_YIELD = 2_000
_SPINS_BEFORE_PARKING = 20_000
"""About 0.2 ms: longer than Python needs between two layers, shorter than a token is worth."""

_LINE = 8
"""int64 words of a cache line: each shared word has its own."""
_ARRIVED, _GENERATION, _TICKET, _STOP = (_LINE * i for i in range(4))
_PROGRAM, _COUNT, _ROWS, _YIELD, _LED = (_LINE * 4 + i for i in range(5))
_SHARED_WORDS = _LINE * 5


@intrinsic
def _atomic_add(context, address, value):
    def codegen(ctx, b, sig, args):
        pointer = b.inttoptr(args[0], I64.as_pointer())
        return b.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def _atomic_load(context, address):
    def codegen(ctx, b, sig, args):
        return b.load_atomic(b.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.intp), codegen


@intrinsic
def _atomic_store(context, address, value):
    def codegen(ctx, b, sig, args):
        b.store_atomic(args[1], b.inttoptr(args[0], I64.as_pointer()), "release", 8)
        return ctx.get_dummy_value()

    return types.none(types.intp, types.int64), codegen


@intrinsic
def _pause(context):
    """Tell the core this is a spin loop."""

    def codegen(ctx, b, sig, args):
        if jit.architecture() == "x86":
            kind = ir.FunctionType(ir.VoidType(), [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])
        elif jit.architecture() == "arm":
            kind = ir.FunctionType(ir.VoidType(), [I32])
            hint = cgutils.get_or_insert_function(b.module, kind, "llvm.aarch64.hint")
            b.call(hint, [I32(1)])
        return ctx.get_dummy_value()

    return types.none(), codegen


def _yield_address() -> int:
    """Address of the system's "let another thread run", found as the platform offers it."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@intrinsic
def _yield_cpu(context, address):
    """Call the function at `address`, which takes nothing and returns an int."""

    def codegen(ctx, b, sig, args):
        kind = ir.FunctionType(I32, [])
        b.call(b.inttoptr(args[0], kind.as_pointer()), [])
        return ctx.get_dummy_value()

    return types.none(types.intp), codegen


@intrinsic
def _call(context, address, args, rows, thread, threads):
    """Call an op by its address."""

    def codegen(ctx, b, sig, values):
        kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
        b.call(b.inttoptr(values[0], kind.as_pointer()), values[1:])
        return ctx.get_dummy_value()

    return types.none(*([types.intp] * 5)), codegen


@jit.inline
def _barrier(shared, threads):
    """Wait until all threads are here."""
    generation = _atomic_load(shared + 8 * _GENERATION)
    if _atomic_add(shared + 8 * _ARRIVED, 1) == threads - 1:
        _atomic_store(shared + 8 * _ARRIVED, 0)
        _atomic_store(shared + 8 * _GENERATION, generation + 1)
        return
    spins = 0
    while _atomic_load(shared + 8 * _GENERATION) == generation:
        _pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            _yield_cpu(load_int(shared + 8 * _YIELD))


@jit.inline
def _walk(shared, program, count, rows, thread, threads):
    """Run every instruction; all threads are finished when it returns."""
    for i in range(count):
        at = program + 8 * INSTRUCTION_WORDS * i
        if load_int(at + 8) and threads > 1:
            _barrier(shared, threads)
        _call(load_int(at), load_int(at + 16), rows, thread, threads)
    if threads > 1:
        _barrier(shared, threads)


@jit.entry("(intp, intp, intp, intp)")
def _publish(shared, program, count, rows):
    """Hand a program to the team."""
    _atomic_store(shared + 8 * _PROGRAM, program)
    _atomic_store(shared + 8 * _COUNT, count)
    _atomic_store(shared + 8 * _ROWS, rows)
    _atomic_add(shared + 8 * _TICKET, 1)


@jit.inline
def _take_part(shared, thread, threads):
    """Walk the program that was handed out last."""
    program = _atomic_load(shared + 8 * _PROGRAM)
    count = _atomic_load(shared + 8 * _COUNT)
    _walk(shared, program, count, _atomic_load(shared + 8 * _ROWS), thread, threads)


@jit.entry("(intp, intp)")
def _lead(shared, threads):
    """The calling thread's part: it is thread 0, and notes which ticket it has led."""
    _take_part(shared, 0, threads)
    _atomic_store(shared + 8 * _LED, _atomic_load(shared + 8 * _TICKET))


@jit.entry("(intp,)")
def _has_led_all(shared):
    return _atomic_load(shared + 8 * _LED) == _atomic_load(shared + 8 * _TICKET)


@jit.entry("(intp,)")
def _latest(shared):
    return _atomic_load(shared + 8 * _TICKET)


@jit.entry("(intp, intp, intp, intp)")
def _follow(shared, ticket, thread, threads):
    """A worker's life until it has waited long: the last ticket it served, or -1 to stop."""
    spins = 0
    while spins < _SPINS_BEFORE_PARKING:
        if _atomic_load(shared + 8 * _STOP):
            return -1
        latest = _atomic_load(shared + 8 * _TICKET)
        if latest == ticket:
            _pause()
            spins += 1
            continue
        _take_part(shared, thread, threads)
        ticket = latest
        spins = 0
    return ticket


TEAMWORK = (_publish, _lead, _has_led_all, _latest, _follow)
"""What a team compiles, if nobody has, before it starts its threads."""


class Team(Closing):
    """`threads` threads, the calling one included; one thread at a time may call run().

    The others start with the first run.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._shared = np.zeros(_SHARED_WORDS + _LINE, np.int64)
        self._address = -(-self._shared.ctypes.data // 64) * 64
        self._write(_YIELD, _yield_address())
        self._started = self._closed = False
        self._wake = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._parked = [False] * (threads - 1)
        self._workers = [
            threading.Thread(target=self._serve, args=(i,), name=f"flashllm-{i + 1}", daemon=True)
            for i in range(threads - 1)
        ]

    def run(self, program: int, count: int, rows: int) -> None:
        """Run `count` instructions at address `program` over `rows` rows, on all threads.

        Raises EngineError after close().
        """
        if self._closed:
            raise EngineError("the kernels' threads are closed; open the model again")
        if not self._started:
            self._start()
        self._catch_up()
        _publish(self._address, program, count, rows)
        self._wake_parked()
        _lead(self._address, self.threads)

    def close(self) -> None:
        """Stop and join the workers."""
        if self._closed:
            return
        self._closed = True
        if self._started:
            self._catch_up()
        self._write(_STOP, 1)
        self._wake_parked()
        for worker in self._workers:
            if worker.ident is not None:  # Ctrl-C may have struck before it was started
                worker.join()

    def _start(self) -> None:
        # Numba releases the GIL inside an entry but compiles under a lock: compile them now, so
        # that no worker waits for the compiler while the leader waits for the worker.
        for function in TEAMWORK:
            function.prepare()
        for worker in self._workers:
            if worker.ident is None:
                worker.start()
        self._started = True

    def _catch_up(self) -> None:
        """Walk what Ctrl-C kept this thread from: its workers wait in a barrier meanwhile.

        Native code keeps both counts, so it cannot strike between an act and its record.
        """
        if not _has_led_all(self._address):
            self._wake_parked()
            _lead(self._address, self.threads)

    def _write(self, word: int, value: int) -> None:
        self._shared[(self._address - self._shared.ctypes.data) // 8 + word] = value

    def _wake_parked(self) -> None:
        for i, parked in enumerate(self._parked):
            if parked:
                self._parked[i] = False
                self._wake[i].release()

    def _serve(self, index: int) -> None:
        """A worker: follow programs, park when none comes, stop when told to."""
        ticket = 0
        while (ticket := _follow(self._address, ticket, index + 1, self.threads)) >= 0:
            # Say "parked", then look once more: the leader publishes, then looks who is parked, so
            # one of the two always sees the other.
            self._parked[index] = True
            if (_latest(self._address) == ticket and not self._closed) or not self._parked[index]:
                self._wake[index].acquire()
            self._parked[index] = False
