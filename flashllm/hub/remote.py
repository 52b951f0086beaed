"""The Hugging Face hub over the network, through huggingface_hub's own session.

The only module that imports huggingface_hub, which takes 0.2 s: import this one when the network
is needed, not before. Endpoints: huggingface.co/docs/hub/api; what /resolve/ answers:
huggingface_hub, file_download.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Generator
from urllib.parse import quote

from huggingface_hub import HfApi, ModelCardData, constants, get_session, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from flashllm.errors import (
    CorruptModel,
    DownloadError,
    FlashError,
    ModelNotFound,
)
from flashllm.hub.repository import RepoFile, Repository

# The root error of the HTTP library below huggingface_hub: httpx until its version 2, then httpx2.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_ATTEMPTS = 6
_LONGEST_PAUSE_S = 8.0
_TIMEOUT_S = 30.0
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Hub:
    """A hub, asked as one user. `endpoint`: its address; `pause`: how to wait between attempts."""

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        pause: Callable[[float], None] = time.sleep,
    ):
        """endpoint: by default $HF_ENDPOINT, or huggingface.co; token: $HF_TOKEN, or the login."""
        chosen = endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        self.endpoint = chosen.rstrip("/")
        self._token = token
        self._pause = pause
        self._api = HfApi(endpoint=self.endpoint, token=token, library_name="flashllm")

    def repository(self, repo: str, revision: str) -> Repository:
        """What `repo` holds at `revision`: a branch, a tag or a commit.

        Raises ModelNotFound, DownloadError or CorruptModel.
        """
        try:
            info = self._api.model_info(
                repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
            )
            card = info.card_data or ModelCardData()
            licence = card.license if card.license != "other" else card.license_name
        except (OSError, _HTTP_ERROR) as error:
            raise self._failure(error, repo, revision) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DownloadError(
                f"{self.endpoint} does not answer as a hub does ({_brief(error)}); "
                "check HF_ENDPOINT"
            ) from None
        if not info.sha or not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
            raise CorruptModel(f"{self.endpoint} names no commit of {repo}; is it really a hub?")
        files = {}
        for sibling in info.siblings or []:
            try:
                sha256 = sibling.lfs.sha256 if sibling.lfs else None
                blob = sha256 or sibling.blob_id
                files[sibling.rfilename] = RepoFile(
                    sibling.rfilename, sibling.size or 0, sha256, blob
                )
            except CorruptModel:
                continue  # Left out: only an error if the model turns out to need it.
        return Repository(repo, info.sha, files, licence if isinstance(licence, str) else None)

    def read(self, repository: Repository, file: RepoFile, first: int, end: int) -> bytes:
        """Bytes first .. end of a file. Raises as `stream` does."""
        return b"".join(self.stream(repository, file, first, end))

    def stream(
        self, repository: Repository, file: RepoFile, first: int = 0, end: int | None = None
    ) -> Generator[bytes, None, None]:
        """Bytes first .. end of a file in pieces, going on where a broken connection ended.

        Closing it, be it early, closes the connection.

        Raises DownloadError when several attempts in a row brought nothing, ModelNotFound, or
        CorruptModel if the hub now says another size.
        """
        position = first
        end = file.nbytes if end is None else min(end, file.nbytes)
        failures = 0
        while position < end:
            problem: Exception | None = None
            try:
                with contextlib.closing(self._request(repository, file, position, end)) as pieces:
                    for piece in pieces:
                        position += len(piece)
                        failures = 0
                        yield piece
            except (OSError, _HTTP_ERROR) as error:
                if not _may_pass(error):
                    raise self._failure(error, repository.repo, repository.commit) from None
                problem = error
            if position >= end:
                return
            failures += 1
            if failures == _ATTEMPTS:
                raise DownloadError(
                    f"the connection to {self.endpoint} broke at byte {position} of "
                    f"{file.name} and {_ATTEMPTS} attempts to go on failed ({_brief(problem)}); "
                    "what came is kept: pull again to go on from there"
                )
            self._pause(min(2.0 ** (failures - 1), _LONGEST_PAUSE_S))

    def _request(
        self, repository: Repository, file: RepoFile, first: int, end: int
    ) -> Generator[bytes, None, None]:
        """What one request brings of bytes first .. end."""
        url = (
            f"{self.endpoint}/{repository.repo}/resolve/"
            f"{quote(repository.commit, safe='')}/{quote(file.name)}"
        )
        headers = build_hf_headers(
            token=self._token,
            library_name="flashllm",
            headers={"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"},
        )
        with get_session().stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            skip = first
            if response.status_code == 206:
                skip = 0
                _check_range(response.headers.get("Content-Range", ""), file, first)
            left = end - first
            for chunk in response.iter_bytes():  # As it comes: what came before a break counts.
                piece = chunk[skip:][:left]
                skip = max(skip - len(chunk), 0)
                left -= len(piece)
                if piece:
                    yield piece
                if not left:
                    return

    def _failure(self, error: Exception, repo: str, revision: str) -> FlashError:
        """What to raise for `error`, in one line that says what to do."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        where = f"{self.endpoint}/{repo}"
        if isinstance(error, GatedRepoError):
            return DownloadError(
                f"{repo} is gated: accept its licence at {where}, then set HF_TOKEN to a token of "
                "your account (or run `hf auth login`)"
            )
        if isinstance(error, RevisionNotFoundError):
            return ModelNotFound(f"{repo} has no revision {revision!r}; see {where}/tree/main")
        if isinstance(error, RepositoryNotFoundError):
            return ModelNotFound(
                f"there is no model {repo} on {self.endpoint}, or it is private; check the "
                "spelling, or set HF_TOKEN to a token that may read it"
            )
        if status in (401, 403):
            return DownloadError(
                f"{self.endpoint} refuses access to {repo} (HTTP {status}); check HF_TOKEN, or run "
                "`hf auth login`"
            )
        if status == 404:
            return ModelNotFound(f"{where}, revision {revision}: not found; check the spelling")
        if status is not None:
            return DownloadError(f"{self.endpoint} answers HTTP {status} for {repo}; try later")
        if isinstance(error, OfflineModeIsEnabled):
            return ModelNotFound(f"{repo} is not here, and HF_HUB_OFFLINE forbids to fetch it")
        return DownloadError(
            f"cannot reach {self.endpoint} to fetch {repo} ({_brief(error)}); check the network, "
            "or use --offline with what is here"
        )


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: the connection failed, or the server is busy."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return not isinstance(error, OfflineModeIsEnabled)


def _check_range(given: str, file: RepoFile, first: int) -> None:
    match = _RANGE.fullmatch(given)
    if match is None or int(match[1]) != first:
        raise DownloadError(f"{file.name}: asked from byte {first}, the hub sent {given!r:.80}")
    if match[2] != "*" and int(match[2]) != file.nbytes:
        raise CorruptModel(
            f"{file.name}: has {match[2]} bytes where the hub listed {file.nbytes}; pull again"
        )


def _brief(error: Exception | None) -> str:
    """The first line of an error, of a sensible length."""
    lines = str(error or "it ended early").strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
