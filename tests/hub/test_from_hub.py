"""Tests of pulling from the Hugging Face hub: against a hub of our own, over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from fake_hub import COMMIT, FakeHub, Repo
from recording import Recorder

from flashllm import machine
from flashllm.errors import (
    CorruptModel,
    DiskFull,
    DownloadError,
    InvalidInput,
    ModelNotFound,
    UnsupportedModel,
)
from flashllm.hub import remote, store
from flashllm.hub.origin import read_origin
from flashllm.hub.pull import pull

Q8 = "acme/tiny-GGUF:Q8_0"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, of which none is waited."""
    pauses: list[float] = []

    def init(self: remote.Hub, *args: object, **options: object) -> None:
        original(self, *args, **options, pause=pauses.append)

    original = remote.Hub.__init__
    monkeypatch.setattr(remote.Hub, "__init__", init)
    return pauses


def leftovers() -> list[str]:
    return sorted(p.name for p in store.models_dir().glob("*") if p.name != ".locks")


def test_a_quant_of_a_gguf_repository(hub: FakeHub) -> None:
    recorder = Recorder()
    path = pull("acme/tiny-GGUF:q8_0", recorder.workshop())
    assert path == store.models_dir() / "acme--tiny-gguf--q8_0"
    assert recorder.weights == {
        "tiny-Q8_0.gguf": hub.repos["acme/tiny-GGUF"].files["tiny-Q8_0.gguf"]
    }
    assert leftovers() == [path.name]
    total = len(hub.repos["acme/tiny-GGUF"].files["tiny-Q8_0.gguf"])
    assert recorder.progress[-1] == (total, total)
    assert recorder.messages[1] == "planned: it fits."
    assert [m.split()[0] for m in recorder.messages] == [
        "reading", "planned:", "fetching", "converting",
    ]  # fmt: skip
    origin = read_origin(path)
    assert origin is not None
    assert (origin.source, origin.commit, origin.licence) == (
        "acme/tiny-GGUF",
        COMMIT,
        "apache-2.0",
    )
    hub.requests.clear()
    assert pull("acme/tiny-GGUF:Q8_0", Recorder().workshop()) == path  # never twice
    assert pull("acme--tiny-gguf--q8_0", Recorder().workshop(), offline=True) == path
    assert hub.requests == []


def test_the_header_is_planned_before_the_weights_are_fetched(hub: FakeHub) -> None:
    class Unsupported(Recorder):
        def plan(self, source: Path, dtype: str, fetched: int):  # type: ignore[no-untyped-def]
            super().plan(source, dtype, fetched)
            raise UnsupportedModel(f"{source}/config.json: architecture 'X' is not supported")

    recorder = Unsupported()
    with pytest.raises(UnsupportedModel, match=r"^acme/tiny/config.json: architecture 'X'"):
        pull("acme/tiny", recorder.workshop())
    (seen,) = recorder.planned
    assert {t.dtype for t in seen.tensors.values()} == {"BF16"}
    assert seen.metadata["model_type"] == "llama"
    sizes = {name: len(data) for name, data in hub.repos["acme/tiny"].files.items()}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert weights <= recorder.to_fetch <= sum(sizes.values())
    assert recorder.converted == []
    assert not any(path.is_file() for path in store.models_dir().rglob("*.safetensors"))


def test_a_view_holds_headers_and_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    big = tiny.write_gguf(tmp_path / "big.gguf", hidden=512, ffn=1024, layers=4).read_bytes()
    hub.repos["acme/big"] = Repo({"big-F32.gguf": big})

    class Looking(Recorder):
        disk = 0

        def plan(self, source: Path, dtype: str, fetched: int):  # type: ignore[no-untyped-def]
            assert source.stat().st_size == len(big)
            self.disk = source.stat().st_blocks * 512
            asked = [tuple(map(int, r[6:].split("-"))) for r in hub.served("big-F32.gguf") if r]
            assert sum(last + 1 - first for first, last in asked) < len(big) / 8
            return super().plan(source, dtype, fetched)

    recorder = Looking()
    pull("acme/big", recorder.workshop())
    assert 0 < recorder.disk < len(big) / 8
    assert recorder.planned[0].tensors.keys() == recorder.converted[0][0].tensors.keys()


def test_rope_factors_are_part_of_the_view(hub: FakeHub, tmp_path: Path) -> None:
    import numpy as np

    keys = {"general.architecture": "llama", "general.alignment": 32}
    factors = np.arange(1, 9, dtype=np.float32)
    tensors = {
        "blk.0.filler.weight": (np.zeros((1024, 1024), np.float32), "F32"),
        "rope_freqs.weight": (factors, "F32"),
    }
    hub.repos["acme/roped"] = Repo({"r-F32.gguf": tiny.gguf_bytes(keys, tensors)})

    class Looking(Recorder):
        def plan(self, source: Path, dtype: str, fetched: int):  # type: ignore[no-untyped-def]
            planned = super().plan(source, dtype, fetched)
            tensor = self.planned[-1].tensor("rope_freqs.weight")
            read = source.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
            assert read == factors.tobytes()
            return planned

    pull("acme/roped", Looking().workshop())


def test_safetensors_and_nothing_that_is_not_needed(hub: FakeHub) -> None:
    recorder = Recorder()
    path = pull("acme/tiny", recorder.workshop())
    assert path.name == "acme--tiny"
    ((checkpoint, dtype),) = recorder.converted
    assert (checkpoint.kind, dtype) == ("safetensors", "keep")
    files = hub.repos["acme/tiny"].files
    assert recorder.weights == {n: c for n, c in files.items() if n.endswith(".safetensors")}
    assert hub.served("pytorch_model.bin") == []
    assert hub.served("README.md") == []
    assert hub.served("tokenizer.json")


def test_a_quant_of_safetensors_is_our_dtype(hub: FakeHub) -> None:
    recorder = Recorder()
    assert pull("acme/tiny:Q4", recorder.workshop()).name == "acme--tiny--q4"
    assert recorder.converted[0][1] == "q4"
    assert pull("acme/tiny:keep", recorder.workshop()).name == "acme--tiny"
    assert pull("acme/tiny:q4", recorder.workshop()).name == "acme--tiny--q4"
    with pytest.raises(InvalidInput, match="Q4_K_M"):
        pull("acme/tiny:Q4_K_M", recorder.workshop())


def test_a_broken_connection_is_gone_on_with(hub: FakeHub, hurry: list[float]) -> None:
    content = hub.repos["acme/tiny-GGUF"].files["tiny-F16.gguf"]
    recorder = Recorder()
    recorder.plan = lambda source, dtype, fetched: hub.cuts.extend([50_000, 60_000]) or _planned()  # type: ignore[method-assign, func-returns-value]
    pull("acme/tiny-GGUF:F16", recorder.workshop())
    assert recorder.weights["tiny-F16.gguf"] == content
    ranges = hub.served("tiny-F16.gguf")[-3:]
    last = len(content) - 1
    assert ranges == [f"bytes=0-{last}", f"bytes=50000-{last}", f"bytes=110000-{last}"]
    assert hurry == [1.0, 1.0]


def _planned() -> object:
    from recording import Planned

    return Planned()


def test_an_interrupted_download_is_resumed_by_the_next_pull(hub: FakeHub) -> None:
    content = hub.repos["acme/tiny-GGUF"].files["tiny-F16.gguf"]

    class Killed(Recorder):
        def workshop(self):  # type: ignore[no-untyped-def]
            import dataclasses

            return dataclasses.replace(super().workshop(), on_progress=self.stop)

        def stop(self, done: int, total: int) -> None:
            raise KeyboardInterrupt

        def plan(self, source: Path, dtype: str, fetched: int):  # type: ignore[no-untyped-def]
            hub.cuts.append(70_000)
            return super().plan(source, dtype, fetched)

    with pytest.raises(KeyboardInterrupt):
        pull("acme/tiny-GGUF:F16", Killed().workshop())
    (unfinished,) = store.list_unfinished()
    assert unfinished.repo == "acme/tiny-GGUF"
    assert 0 < unfinished.bytes <= 70_000
    hub.requests.clear()
    hub.cuts.clear()
    recorder = Recorder()
    path = pull("acme/tiny-GGUF:F16", recorder.workshop())
    assert hub.served("tiny-F16.gguf")[-1] == f"bytes={unfinished.bytes}-{len(content) - 1}"
    assert recorder.weights["tiny-F16.gguf"] == content
    assert recorder.progress[0] == (unfinished.bytes, len(content))
    assert leftovers() == [path.name]


def test_a_hub_that_ignores_ranges_still_serves(hub: FakeHub) -> None:
    hub.ignore_ranges = True
    recorder = Recorder()
    recorder.plan = lambda source, dtype, fetched: hub.cuts.append(70_000) or _planned()  # type: ignore[method-assign, func-returns-value]
    pull(Q8, recorder.workshop())
    assert (
        recorder.weights["tiny-Q8_0.gguf"] == (hub.repos["acme/tiny-GGUF"].files["tiny-Q8_0.gguf"])
    )


def test_a_connection_that_never_holds_is_given_up(hub: FakeHub, hurry: list[float]) -> None:
    recorder = Recorder()
    recorder.plan = lambda source, dtype, fetched: hub.cuts.extend([0] * 20) or _planned()  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(DownloadError, match="pull again") as caught:
        pull(Q8, recorder.workshop())
    assert "\n" not in str(caught.value)
    assert hurry == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_wrong_hash_is_refused_and_deleted(hub: FakeHub) -> None:
    hub.repos["acme/tiny-GGUF"].sha256["tiny-Q8_0.gguf"] = "0" * 64
    with pytest.raises(CorruptModel, match="SHA-256"):
        pull(Q8, Recorder().workshop())
    assert leftovers() == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("acme/nothing", ModelNotFound, "no model acme/nothing"),
        ("acme/tiny@v9", ModelNotFound, "no revision 'v9'"),
        ("acme/tiny-GGUF:Q2_K", ModelNotFound, "it has F16, Q8_0"),
        ("acme/gated", DownloadError, "accept its licence"),
        ("acme/pickles", UnsupportedModel, "is a pickle"),
        ("acme/empty", ModelNotFound, "holds no model"),
        ("acme/adapter", UnsupportedModel, "adapter"),
    ],
)
def test_refusals_are_one_clear_line(
    hub: FakeHub, name: str, error: type[Exception], words: str
) -> None:
    gguf = hub.repos["acme/tiny-GGUF"].files
    hub.repos["acme/gated"] = Repo(gguf, gated=True)
    hub.repos["acme/pickles"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    hub.repos["acme/empty"] = Repo({"README.md": b""})
    hub.repos["acme/adapter"] = Repo(
        {"adapter_config.json": b"", "adapter_model.safetensors": b"1"}
    )
    with pytest.raises(error, match=words) as caught:
        pull(name, Recorder().workshop())
    assert "\n" not in str(caught.value)
    assert leftovers() == []


def test_a_gated_repository_opens_to_a_token_that_the_content_server_never_sees(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["acme/gated"] = Repo(hub.repos["acme/tiny-GGUF"].files, gated=True)
    monkeypatch.setenv("HF_TOKEN", "accepted")
    pull("acme/gated", Recorder().workshop())
    assert hub.tokens == {"Bearer accepted"}
    assert hub.foreign_tokens == {None}


@pytest.mark.parametrize(("status", "words"), [(401, "HF_TOKEN"), (500, "HTTP 500")])
def test_a_hub_that_refuses_is_told_apart(hub: FakeHub, status: int, words: str) -> None:
    hub.status = [status]
    with pytest.raises((DownloadError, ModelNotFound), match=words):
        pull("acme/tiny", Recorder().workshop())


def test_a_busy_hub_is_asked_again(hub: FakeHub, hurry: list[float]) -> None:
    recorder = Recorder()
    recorder.plan = lambda source, dtype, fetched: hub.status.extend([503, 429]) or _planned()  # type: ignore[method-assign, func-returns-value]
    pull(Q8, recorder.workshop())
    assert hurry == [1.0, 2.0]


def test_no_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(DownloadError, match="cannot reach") as caught:
        pull("acme/tiny", Recorder().workshop())
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_noticed_before_fetching(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 100)
    with pytest.raises(DiskFull, match="FLASHLLM_HOME"):
        pull(Q8, Recorder().workshop())
    asked = [tuple(map(int, r[6:].split("-"))) for r in hub.served("tiny-Q8_0.gguf") if r]
    assert len(asked) == 1  # its header
    assert leftovers() == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), CorruptModel("bad")])
def test_a_failed_conversion_keeps_the_download(hub: FakeHub, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        pull(Q8, Recorder(failure).workshop())
    assert [u.repo for u in store.list_unfinished()] == ["acme/tiny-GGUF"]
    hub.requests.clear()
    pull(Q8, Recorder().workshop())
    assert hub.served("tiny-Q8_0.gguf") == []


def test_the_hub_names_no_files_outside(hub: FakeHub) -> None:
    index = b'{"weight_map": {"a": "../../x.safetensors"}}'
    for files in (
        {"../evil-Q8_0.gguf": b"GGUF"},
        {"/etc/evil-Q8_0.gguf": b"GGUF"},
        {"a\\..\\evil-Q8_0.gguf": b"GGUF"},
        {"config.json": b"{}", "model.safetensors.index.json": index},
    ):
        hub.repos["acme/evil"] = Repo(files)
        with pytest.raises((ModelNotFound, CorruptModel)):
            pull("acme/evil", Recorder().workshop())
    assert leftovers() == []


def test_a_revision(hub: FakeHub) -> None:
    path = pull("acme/tiny", Recorder().workshop(), revision=COMMIT)
    assert path.name == f"acme--tiny--at-{COMMIT}"
    assert pull(f"acme/tiny@{COMMIT}", Recorder().workshop(), offline=True) == path
    with pytest.raises(InvalidInput, match="name one"):
        pull("acme/tiny@main2", Recorder().workshop(), revision="v1")
    with pytest.raises(InvalidInput, match="owner/name"):
        pull("tiny", Recorder().workshop(), revision="v1")


def cached(hub: FakeHub, repo: str, folder: Path, leave_out: str = "?") -> Path:
    """Put a repository in Hugging Face's cache, as huggingface_hub does."""
    base = folder / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = base / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (base / "blobs").mkdir()
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(COMMIT)
    for number, (name, content) in enumerate(hub.repos[repo].files.items()):
        if leave_out not in name:
            (base / "blobs" / str(number)).write_bytes(content)
            (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_what_the_cache_holds_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    snapshot = cached(hub, "acme/tiny", tmp_path / "hf")
    before = sorted(snapshot.iterdir())
    recorder = Recorder()
    pull("acme/tiny", recorder.workshop())
    assert recorder.converted[0][0].path == snapshot
    assert [path for _, path, _ in hub.requests] == ["/api/models/acme/tiny/revision/main"]
    assert sorted(snapshot.iterdir()) == before


def test_only_what_the_cache_lacks_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    cached(hub, "acme/tiny", tmp_path / "hf", leave_out="00002-of")
    recorder = Recorder()
    pull("acme/tiny", recorder.workshop())
    files = hub.repos["acme/tiny"].files
    assert recorder.weights == {n: c for n, c in files.items() if n.endswith(".safetensors")}
    assert {path for _, path, _ in hub.requests if path.startswith("/content/")} == {
        "/content/model-00002-of-00002.safetensors"
    }


@pytest.mark.parametrize("switch", ["flag", "FLASHLLM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache(
    hub: FakeHub, tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if switch != "flag":
        monkeypatch.setenv(switch, "1")
    offline = switch == "flag"
    with pytest.raises(ModelNotFound, match="once with a network"):
        pull("acme/tiny", Recorder().workshop(), offline=offline)
    cached(hub, "acme/tiny", tmp_path / "hf")
    cached(hub, "acme/tiny-GGUF", tmp_path / "hf", leave_out="F16")
    assert pull("acme/tiny", Recorder().workshop(), offline=offline).name == "acme--tiny"
    assert pull("acme/tiny-GGUF", Recorder().workshop(), offline=offline).name.endswith("q8_0")
    with pytest.raises(ModelNotFound, match="does not hold all of"):
        pull("acme/tiny-GGUF:F16", Recorder().workshop(), offline=offline)
    assert hub.requests == []


def test_an_unreachable_hub_is_no_matter_if_the_cache_has_it(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(hub, "acme/tiny", tmp_path / "hf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    recorder = Recorder()
    pull("acme/tiny", recorder.workshop())
    assert "cache" in recorder.messages[0]


def test_a_kept_download_is_what_huggingface_hub_would_have_left(
    hub: FakeHub, tmp_path: Path
) -> None:
    from huggingface_hub import try_to_load_from_cache

    pull("acme/tiny", Recorder().workshop(), keep_download=True)
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        found = try_to_load_from_cache("acme/tiny", name, cache_dir=tmp_path / "hf" / "hub")
        assert isinstance(found, str)
        assert Path(found).read_bytes() == hub.repos["acme/tiny"].files[name]
    assert leftovers() == ["acme--tiny"]
    store.remove("acme/tiny")
    pull("acme/tiny", Recorder().workshop(), offline=True)


def test_a_split_gguf_comes_whole(hub: FakeHub) -> None:
    files = {f"big/m-Q4_0-0000{i}-of-00002.gguf": b"GGUF%d" % i for i in (1, 2)}
    from flashllm.hub.repository import RepoFile, Repository, choose_gguf

    listed = {name: RepoFile(name, len(content)) for name, content in files.items()}
    choice = choose_gguf(Repository("acme/big", COMMIT, listed), None)
    assert [file.name for file in choice.files] == sorted(files)
    assert choice.source == "big/m-Q4_0-00001-of-00002.gguf"
    del listed["big/m-Q4_0-00002-of-00002.gguf"]
    with pytest.raises(CorruptModel, match="00002-of-00002"):
        choose_gguf(Repository("acme/big", COMMIT, listed), None)
