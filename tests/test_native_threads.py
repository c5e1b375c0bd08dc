"""Threads of the native engine, and the choice of kernels."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from kernels import copy_args, isas

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

pytestmark = pytest.mark.usefixtures("need_native")


def _copy(kernel: str | None = None) -> Op:
    return Op(Kind.COPY, (0,), 1, copy_args(8), kernel)


# ---- threads ----------------------------------------------------------------------------------------------------

SHAPE = (4, 64, 96, 80)


def _big_plan(threads: int) -> tuple[Plan, np.ndarray]:
    x = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    args = abi.make(abi.PermuteArgs, rank=4, element_bytes=1, shape=(*SHAPE, 0, 0), order=(0, 2, 3, 1, 0, 0))
    return Plan([Op(Kind.PERMUTE, (0,), 1, args)], [Buffer(x.nbytes)] * 2, 0, threads=threads), x


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 33])
def test_the_result_does_not_depend_on_the_thread_count(threads):
    plan, x = _big_plan(threads)
    for _ in range(20):
        y = np.zeros(x.size, np.uint8)
        plan.run(x, y)
        np.testing.assert_array_equal(y.reshape(4, 96, 80, 64), x.transpose(0, 2, 3, 1))


def test_plans_run_side_by_side_on_one_pool():
    failures = []

    def work() -> None:
        plan, x = _big_plan(2)
        for _ in range(30):
            y = np.zeros(x.size, np.uint8)
            plan.run(x, y)
            if not np.array_equal(y.reshape(4, 96, 80, 64), x.transpose(0, 2, 3, 1)):
                failures.append("differs")

    _together(work, 4)
    assert failures == []


def test_one_plan_runs_one_inference_at_a_time():
    plan, x = _big_plan(1)
    messages = []

    def work() -> None:
        y = np.zeros(x.size, np.uint8)
        for _ in range(30):
            try:
                plan.run(x, y)
            except EngineError as error:
                messages.append(str(error))

    _together(work, 4)
    assert set(messages) <= {"the plan is running already"}
    plan.run(x, np.zeros(x.size, np.uint8))


def _together(work, count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


FORK = """
import os, sys
import numpy as np
from qtool.native import Buffer, Kind, Op, Plan, abi
count = 4 << 20
args = abi.make(abi.PermuteArgs, rank=2, element_bytes=1, shape=(2048, 2048, 0, 0, 0, 0), order=(1, 0, 0, 0, 0, 0))
plan = Plan([Op(Kind.PERMUTE, (0,), 1, args)], [Buffer(count)] * 2, 0, threads=4)
x = np.random.default_rng(0).integers(0, 255, count).astype(np.uint8)
def right(plan):
    y = np.zeros(count, np.uint8)
    plan.run(x, y)
    return (y.reshape(2048, 2048) == x.reshape(2048, 2048).T).all()
assert right(plan)
child = os.fork()
if child == 0:
    ok = right(plan)  # the parent's plan, whose threads are not here
    fresh = Plan([Op(Kind.PERMUTE, (0,), 1, args)], [Buffer(count)] * 2, 0, threads=4)
    ok = ok and right(fresh)
    del plan, fresh
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert right(plan)
"""


def test_a_forked_child_neither_hangs_nor_errs():
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    subprocess.run(command, check=True, timeout=60, cwd=Path(native.__file__).parent.parent.parent)


AFFINITY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_native_threads
def threads():
    return set(map(int, os.listdir("/proc/self/task")))
everywhere, one, others = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}, threads()
if sys.argv[2] == "before":
    os.sched_setaffinity(0, one)
plan, x = test_native_threads._big_plan(2)
test_native_threads._run_often(plan, x)
workers = threads() - others
if sys.argv[2] == "after":
    assert os.sched_getaffinity(0) == everywhere  # a worker may have left a CPU, the caller stays as it was
    for thread in (0, *workers):
        os.sched_setaffinity(thread, one)
    test_native_threads._run_often(plan, x)
allowed = {thread: os.sched_getaffinity(thread) for thread in workers}
assert len(allowed) == 1 and set(map(tuple, allowed.values())) == {tuple(one)}, allowed
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_threads_keep_to_the_cpus_that_they_are_given(when):
    command = [sys.executable, "-W", "ignore", "-c", AFFINITY, str(Path(__file__).parent), when]
    subprocess.run(command, check=True, timeout=60, cwd=Path(native.__file__).parent.parent.parent)


def _run_often(plan: Plan, x: np.ndarray) -> None:
    y = np.zeros(x.size, np.uint8)
    for _ in range(50):
        plan.run(x, y)


# ---- the choice of kernels --------------------------------------------------------------------------------------


LAYOUT_ISAS = [row.isa for row in native.kernels() if row.family == "layout"] if native.available() else []


@pytest.mark.parametrize("isa", isas())
def test_the_choice_is_a_function_of_the_instruction_set(isa):
    plan = Plan([_copy()], [Buffer(8), Buffer(8)], 0, isa=isa)
    best = [have for have in LAYOUT_ISAS if abi.ISAS.index(have) <= abi.ISAS.index(isa)][-1]
    assert plan.kernels == (f"layout_{best}",)


@pytest.mark.parametrize(("lower", "upper"), list(pairwise(LAYOUT_ISAS)))
def test_a_row_above_the_plan_is_refused(lower, upper):
    with pytest.raises(EngineError, match=f"kernel layout_{upper} needs {upper}"):
        Plan([_copy(kernel=f"layout_{upper}")], [Buffer(8), Buffer(8)], 0, isa=lower)


def test_every_row_is_listed_once_and_the_scalar_ones_come_with_every_family():
    rows = native.kernels()
    assert len({row.name for row in rows}) == len(rows)
    assert {row.family for row in rows if row.isa == "scalar"} == {row.family for row in rows}
    assert {row.isa for row in rows} <= set(abi.ISAS)


def test_no_instruction_set_is_skipped():
    """Each comes with all before it but AVX-VNNI, which stands beside the way from AVX2 to AVX512-VNNI."""
    supported = native.supported_isas()
    chain = tuple(isa for isa in abi.ISAS if isa != "avxvnni")
    beside = tuple(isa for isa in supported if isa != "avxvnni")
    assert beside == chain[: len(beside)]
    assert "avxvnni" not in supported or supported[:3] == ("scalar", "avx2", "avxvnni")
