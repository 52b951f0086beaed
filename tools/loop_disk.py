"""A disk with another read-ahead: copies of models on a file system in a file, on a loop device.

Programs that map their files stand or fall with how much the kernel reads ahead: 128 KiB on a
laptop, many MiB on some servers. Linux and root only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SPARE = 64 << 20  # for the file system itself, besides a share of what it holds
LARGEST_COPY = 8 << 20


@contextlib.contextmanager
def loop_disk(sources: list[Path], folder: Path, read_ahead_kb: int) -> Iterator[dict[Path, Path]]:
    """Copies of `sources` (files or folders), by source, on a disk of that read-ahead.

    The image is made in `folder`, which decides what disk is really read. Its name is removed as
    soon as it is mounted, and the loop device goes with the mount, so that only unmounting is left
    to do in the end. The loop device reads the image directly, so that nothing is cached twice.
    Raises SystemExit if there is no room, or no loop device.
    """
    need = sum(size(source) for source in sources) * 101 // 100 + SPARE
    if (free := shutil.disk_usage(folder).free) < need + SPARE:
        raise SystemExit(
            f"{folder}: a loop disk of {need / 1e9:.1f} GB needs more than the {free / 1e9:.1f} GB "
            "free; give another place with --loop-folder"
        )
    with contextlib.ExitStack() as stack:
        mount = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loop-disk-")))
        device = stack.enter_context(mounted(folder / f"loop-disk-{os.getpid()}.img", need, mount))
        block = Path("/sys/block") / device
        (block / "queue/read_ahead_kb").write_text(str(read_ahead_kb))
        if (found := int((block / "queue/read_ahead_kb").read_text())) != read_ahead_kb:
            raise SystemExit(f"{device}: the read-ahead is {found} KiB, not {read_ahead_kb}")
        copies = {}
        for i, source in enumerate(sources):
            copies[source] = mount / str(i) / source.name
            copy(source, copies[source])
        os.sync()
        yield copies


@contextlib.contextmanager
def mounted(image: Path, nbytes: int, mount: Path) -> Iterator[str]:
    """The name of the loop device of a new ext4 of `nbytes`, mounted on the folder `mount`."""
    try:
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        # Few inodes: tables for as many as usual would take more than the spare room.
        call("mkfs.ext4", "-q", "-F", "-m", "0", "-T", "largefile4", "-O", "^has_journal", image)
        device = call("losetup", "--find", "--show", "--direct-io=on", image)
        try:
            call("mount", "-o", "noatime", device, mount)
        finally:
            call("losetup", "--detach", device)  # once nothing has it mounted
    finally:
        image.unlink(missing_ok=True)
    try:
        yield Path(device).name
    finally:
        call("umount", "--lazy", mount)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or the files of a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for inner in sorted(source.iterdir()):
            copy(inner, target / inner.name)
        return
    with source.open("rb") as file, target.open("wb") as out:
        shutil.copyfileobj(file, out, LARGEST_COPY)


def size(source: Path) -> int:
    """Bytes of a file, or of all the files in a folder."""
    if source.is_dir():
        return sum(size(inner) for inner in source.iterdir())
    return source.stat().st_size


def read_ahead_kb(path: Path) -> int | None:
    """The read-ahead of the disk that `path` lies on, in KiB; None if it is not a disk's."""
    device = path.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for place in (block, block.parent):  # a partition's disk is above it
        if (place / "queue/read_ahead_kb").exists():
            return int((place / "queue/read_ahead_kb").read_text())
    return None


def call(*command: object) -> str:
    """What a command prints. Raises SystemExit with what it complains of."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is missing; install it to make a loop disk") from None
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()
