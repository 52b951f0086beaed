"""The comparison with other engines under a memory cap: its sums, its groups, and a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from flashllm.flash.format import read_model

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.append(str(TOOLS))

import memcap  # noqa: E402
import memory_group  # noqa: E402
import peer_contenders  # noqa: E402
import peer_table  # noqa: E402
from decode_events import Event, Meter, read_event  # noqa: E402
from direct_rate import BLOCK, direct_rate  # noqa: E402
from loop_disk import loop_disk, read_ahead_kb  # noqa: E402
from peer_run import Run, ending  # noqa: E402

GB = 10**9


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def a_run(name: str, seconds: list[float], **other: Any) -> Run:
    """A run whose tokens took `seconds`: 4 GB of weights under 2.2 GB, from a disk of 1 GB/s."""
    known: dict[str, Any] = {
        "engine": "flashllm" if name.startswith("flashllm") else "llama.cpp",
        "cap_bytes": 2_200_000_000,
        "note": "",
        "loaded": Event("loaded", 5.0, GB, 0),
        "tokens": [Event("token", each, 3 * GB, 0) for each in seconds],
        "memory": {"peak_bytes": 2 * GB, "peak_anonymous_bytes": GB, "kills": 0},
        "disk_bytes_per_s": 1e9,
        **dict.fromkeys(("weight_bytes", "scanned_bytes"), 4 * GB),
    }
    return Run(name, share=0.5, read_ahead_kb=128, command=[], outcome="", **(known | other))


def cells(text: str, name: str) -> dict[str, str]:
    """The cells of a contender's row in a table."""
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    row = lines[name].replace(" to ", "-").split()
    return dict(zip(peer_table.COLUMNS, row, strict=True))


def test_a_row_tells_steady_tokens_beside_the_bound() -> None:
    row = cells(peer_table.tables([a_run("flashllm", [90, 9, 2.0, 3.0])]), "flashllm")
    assert row["s/token"] == "2.500"
    assert row["(min to max)"] == "(2.000-3.000)"
    assert row["MB/token"] == "3000"
    assert row["bound s"] == "2.000"  # (4 + 0.2 - 2.2) GB at 1 GB/s
    assert row["of bound"] == "80%"
    assert row["naive s"] == "4.000"


def test_a_bound_of_nothing_to_read_is_the_time_in_memory() -> None:
    runs = [
        a_run("flashllm", [9, 9, 0.5], cap_bytes=5 * GB),
        a_run("flashllm-in-memory", [9, 9, 0.4], cap_bytes=None),
    ]
    text = peer_table.tables(runs)
    assert cells(text, "flashllm")["of bound"] == "80%"
    assert cells(text, "flashllm-in-memory")["of bound"] == "-"


def test_ratios_are_of_the_same_round_and_the_best_is_named() -> None:
    runs = [
        a_run("flashllm", [9, 9, 1.0], round=0),
        a_run("flashllm", [9, 9, 2.0], round=1),
        a_run("llama-slow", [9, 9, 9.0], round=0),
        a_run("llama-fast", [9], round=0, note="stopped after 1 of 3 tokens, 9 s"),
        a_run("llama-fast", [9, 9, 3.0], round=1),
    ]
    text = peer_table.tables(runs)
    assert cells(text, "llama-slow")["x ours"] == "9.00"
    assert cells(text, "llama-fast")["x ours"] == "1.50"
    assert "llama.cpp at its best, llama-fast: takes 1.50 times as long" in text
    assert "llama-fast: stopped after 1 of 3 tokens" in text


def test_a_contender_without_steady_tokens_has_a_row_too() -> None:
    memory = {"peak_bytes": 2 * GB, "peak_anonymous_bytes": 2 * GB, "kills": 1}
    note = "killed for memory while loading, 4 s"
    text = peer_table.tables([a_run("llama-direct", [], loaded=None, memory=memory, note=note)])
    row = cells(text, "llama-direct")
    assert (row["s/token"], row["kills"], row["peak GB"]) == ("-", "1", "2.00")
    assert note in text


@pytest.mark.parametrize(
    ("took", "decoded", "word"),
    [
        ({"kills": 1, "code": -9, "timed_out": True}, 3, "killed"),
        ({"kills": 0, "code": -9, "timed_out": True}, 3, "time limit"),
        ({"kills": 0, "code": 2, "timed_out": False}, 0, "failed"),
        ({"kills": 0, "code": 0, "timed_out": False}, 4, "failed"),
        ({"kills": 0, "code": 0, "timed_out": False}, 5, "ok"),
    ],
)
def test_how_a_run_ended(took: dict[str, Any], decoded: int, word: str) -> None:
    assert ending({**took, "seconds": 1.0}, decoded, 5, True, ["it is broken"])[0] == word


def test_caps_are_of_the_first_model_where_weights_are_alike() -> None:
    def of(nbytes: int) -> peer_contenders.Contender:
        weights = peer_contenders.Weights(nbytes, 0)
        return peer_contenders.Contender("x", "x", Path(), weights, lambda *given: [])

    first = of(4_000_000_000)
    assert peer_contenders.cap_bytes(0.5, of(4_030_000_000), first) == 2_200_000_000
    assert peer_contenders.cap_bytes(0.5, of(5_000_000_000), first) == 2_700_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_events_are_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    Meter().tell("loaded")
    event = read_event(capsys.readouterr().out)
    assert event is not None and event.event == "loaded" and event.seconds < 1
    assert read_event("Loading weights: 100%") is None


def test_weights_and_commands_of_every_contender(tmp_path: Path) -> None:
    q4 = ("--dtype", "q4", "--pure", "--format")
    for model, name, *options in (
        ("tiny-opt", "hf"),
        ("tiny", "flash", *q4, "flash"),
        ("tiny", "x.gguf", *q4, "gguf"),
    ):
        assert not tool("make_synthetic.py", model, tmp_path / name, *options).returncode
    found = [
        *peer_contenders.ours(tmp_path / "flash", 2, True),
        *peer_contenders.llama_cpp(tmp_path / "x.gguf", Path("llama_decode"), 2),
        *peer_contenders.accelerate(tmp_path / "hf", Path("python"), 2),
    ]
    by_name = {each.name: each for each in found}
    ours, theirs = by_name["flashllm"].weights, by_name["llama-mmap-1"].weights
    assert ours.nbytes == read_model(tmp_path / "flash").unit_bytes
    norms = 9 * 256 * 4  # which units have not
    assert (theirs.nbytes - norms, theirs.looked_up) == (ours.nbytes, ours.looked_up)
    positions, embedding = 2050 * 128 * 2, 512 * 128 * 2
    opt = by_name["accelerate-f16"].weights
    assert opt.looked_up == positions  # its embedding is its head, too
    layer = (opt.nbytes - positions - embedding - 2 * 128 * 2) // 2
    room = peer_contenders.TORCH_BYTES + positions + embedding + 2 * 128 * 2
    split = by_name["accelerate-split-f16"].command
    for mem, resident in ((1000, "0"), (room + 3 * layer, "1"), (room + 99 * layer, "2")):
        assert split(Path("m"), mem, "1,2")[-1] == resident
    assert by_name["llama-default"].command(Path("m"), 5, "1,2") == [
        *("llama_decode", "m", "2", "auto", "auto", "1", "1,2")
    ]
    assert by_name["flashllm"].command(Path("m"), 5, "1,2")[-2:] == ["--mem", "5"]


def test_a_cast_checkpoint_is_the_same_in_bfloat16(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float16)
    (tmp_path / "in").mkdir()
    save_file({"a": values}, tmp_path / "in" / "m.safetensors", {"format": "pt"})
    (tmp_path / "in" / "config.json").write_text('{"torch_dtype": "float16"}')
    done = tool("cast_safetensors.py", tmp_path / "in", tmp_path / "out")
    assert not done.returncode, done.stderr
    data = (tmp_path / "out" / "m.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    assert json.loads(data[8:begin])["a"]["dtype"] == "BF16"
    assert data[begin:] == values.astype(ml_dtypes.bfloat16).tobytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_version_2_files_are_read_as_the_kernel_documents_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_group, "ROOT", tmp_path)
    (tmp_path / "cgroup.controllers").write_text("memory")
    with pytest.raises(OSError, match="no memory controller"):
        memory_group.Version2()
    assert not list(tmp_path.glob("memcap-*"))

    made = tmp_path / f"memcap-{os.getpid()}"
    mkdir = Path.mkdir

    def as_the_kernel_does(path: Path) -> None:
        mkdir(path)
        for name, text in {
            "memory.max": "max\n",
            "memory.swap.max": "max\n",
            "memory.current": "700\n",
            "memory.events": "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n",
            "memory.stat": "anon 300\nfile 250\nshmem 50\nfile_thp 0\nunevictable 20\n",
        }.items():
            (path / name).write_text(text)

    monkeypatch.setattr(Path, "mkdir", as_the_kernel_does)
    group = memory_group.Version2()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    group.limit(1 << 30)
    assert ((made / "memory.max").read_text(), group.limit_bytes()) == (str(1 << 30), 1 << 30)
    assert (made / "memory.swap.max").read_text() == "0"
    assert group.sample() == (350, 20, 700)
    assert group.figures() == {"limit_hits": 12, "kills": 1}
    (made / "memory.peak").write_text("900\n")  # since Linux 5.19
    assert group.figures()["peak_bytes"] == 900


@pytest.fixture
def root() -> None:
    if sys.platform != "linux" or os.geteuid() or not os.access("/sys/fs/cgroup", os.W_OK):
        pytest.skip("needs root and control groups")
    try:
        with memory_group.group():
            pass
    except SystemExit as error:
        pytest.skip(str(error))


CHILD = """
import os, sys
with open(sys.argv[1], "wb") as file:
    file.write(bytes(8 << 20))
    file.flush()
    os.fsync(file.fileno())
taken = bytearray(60_000_000)
print("taken", flush=True)
if sys.argv[2] == "greedy":
    taken += bytearray(200_000_000)
while sys.argv[2] == "endless":
    pass
"""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("manner", "kills", "timed_out"), [("modest", 0, 0), ("greedy", 1, 0), ("endless", 0, 1)]
)
def test_figures_survive_a_kill(tmp_path: Path, manner: str, kills: int, timed_out: int) -> None:
    lines: list[str] = []
    command = [sys.executable, "-c", CHILD, str(tmp_path / "file"), manner]
    with memory_group.group() as capped:
        capped.limit(150_000_001)
        took = memcap.run(capped, command, 1 if timed_out else None, lines.append)
    page = os.sysconf("SC_PAGE_SIZE")
    assert took["limit_bytes"] == 150_000_001 // page * page
    assert (took["kills"], took["timed_out"]) == (kills, bool(timed_out))
    assert (took["code"] == 0) == (manner == "modest")
    assert lines == ["taken\n"]
    assert took["written_bytes"] >= 8 << 20
    assert took["peak_bytes"] <= took["limit_bytes"]
    assert not capped.path.exists()
    if kills:
        assert took["peak_anonymous_bytes"] > 60_000_000


@pytest.mark.usefixtures("root")
def test_a_loop_disk_has_its_read_ahead_and_leaves_nothing(tmp_path: Path) -> None:
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices")
    (tmp_path / "folder").mkdir()
    files = [tmp_path / "file", tmp_path / "folder"]
    data = np.random.default_rng(0).integers(0, 256, BLOCK + 5, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "folder" / "inner").write_bytes(data)
    with loop_disk(files, tmp_path, 128) as copies:
        assert copies[files[0]].read_bytes() == data
        assert (copies[files[1]] / "inner").read_bytes() == data
        assert read_ahead_kb(copies[files[0]]) == 128
        assert direct_rate(copies[files[0]], 0.05) > 0
        mount = copies[files[0]].parents[1]
    assert not mount.exists()
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.usefixtures("root")
def test_a_comparison_from_end_to_end(tmp_path: Path) -> None:
    options = ["--format", "flash", "--dtype", "q4"]
    assert not tool("make_synthetic.py", "tiny", tmp_path / "m", *options).returncode
    found = tmp_path / "found.json"
    flags = ["--flash", tmp_path / "m", "--caps", "60x", "--rounds", 1, "--tokens", 4]
    flags += ["--disk-seconds", 0.1]
    done = tool("compare_peers.py", *flags, "--json", found)
    if "no direct reads here" in done.stderr:
        pytest.skip("needs a file system with direct reads")
    assert not done.returncode, done.stderr
    assert cells(done.stdout, "flashllm")["kills"] == "0"
    (run,) = json.loads(found.read_text())["runs"]
    assert len(run["tokens"]) == 4
    assert run["cap_bytes"] == 60 * run["weight_bytes"] + 200_000_000
    assert run["memory"]["limit_bytes"] <= run["cap_bytes"]
