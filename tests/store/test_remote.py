"""Runs by URL, from a plain file server and from S3; every request is looked at."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
import urllib.parse
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import obstore.store
import pytest
import xarray
import zarr
from moto.server import ThreadedMotoServer
from zarr.storage import ObjectStore

from filmstrip.store import (
    FormatError,
    FrameSpec,
    NotARunError,
    Run,
    RunNotFoundError,
    RunWriter,
    StoreError,
    bit_histogram,
    create_run,
    open_run,
    summarize,
)
from filmstrip.store.cli import main

STEPS = tuple(range(0, 120, 10))
ODD = "block [0] 100% #1?/ä"


def frame(step: int) -> np.ndarray:
    values = np.random.default_rng(step).standard_normal((16, 40, 50)).astype(np.float32)
    values[0, 0, 0] = np.nan if step == 70 else 0.5
    return values


def record(path: Path) -> RunWriter:
    run = create_run(path, metadata={"seed": 1})
    spec = {
        "conv1": FrameSpec((16, 40, 50), "float32", layout="NHW"),
        ODD: FrameSpec((3,), "float32"),
    }
    activations, weights = (run.writer(kind, spec) for kind in ("activations", "weights"))
    statistics = run.statistics_writer("activations", list(spec))
    for step in STEPS:
        both = (frame(step), frame(step)[1, 2, :3])
        weights.append(step, dict(zip(spec, both, strict=True)))
        short = frame(step)[: 9 if step == STEPS[-1] else 16]
        activations.append(step, {"conv1": short, ODD: both[1]})
        histograms = np.stack([*map(bit_histogram, both)])
        statistics.append(step, np.stack([*map(summarize, both)]), histograms)
        run.log(step, {"train/loss": 1 / (step + 1)})
    run.publish()
    return run


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    sent: int


class _Files(BaseHTTPRequestHandler):
    """Files of a folder, by ranges; a folder is not there."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server: Any = self.server
        url = urllib.parse.urlsplit(self.path)
        file = server.folder / urllib.parse.unquote(url.path).lstrip("/")
        wanted, body = self.headers.get("Range"), b""
        if not file.is_file():
            self.send_response(server.absent)
            self.send_header("Content-Length", "0")
        else:
            start, size = 0, file.stat().st_size
            stop = size
            if wanted is not None:
                first, last = wanted.removeprefix("bytes=").split("-")
                start = int(first) if first else max(0, size - int(last))
                stop = min(size, int(last) + 1) if first and last else size
            self.send_response(200 if wanted is None else 206)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
            self.send_header("ETag", f'"{file.stat().st_mtime_ns}-{size}"')
            if wanted is not None:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            if self.command == "GET":
                with file.open("rb") as opened:
                    opened.seek(start)
                    body = opened.read(stop - start)
        self.end_headers()
        server.requests.append(Request(self.command, self.path, wanted, len(body)))
        self.wfile.write(body)


@contextlib.contextmanager
def served(folder: Path, absent: int = 404) -> Iterator[tuple[str, list[Request]]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.folder, server.requests, server.absent = folder, [], absent
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()


class _Bucket(logging.Handler):
    """S3 as moto plays it; its requests come from the log of its server."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def emit(self, record: logging.LogRecord) -> None:
        match = re.search(r'"([A-Z]+) (\S+) HTTP', record.getMessage())
        if match:
            self.requests.append(Request(match[1], match[2], None, 0))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    import boto3

    logger = logging.getLogger("werkzeug")
    level, requests = logger.level, _Bucket()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", "us-east-1")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="runs")
        logger.setLevel(logging.INFO)
        logger.addHandler(requests)
        try:
            yield client, requests.requests
        finally:
            logger.removeHandler(requests)
            logger.setLevel(level)
            client.close()
            server.stop()


class Far(NamedTuple):
    local: Path
    url: str
    requests: list[Request]


@pytest.fixture(scope="module", params=["http live", "http closed", "s3 live", "s3 closed"])
def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    how, state = request.param.split()
    folder = tmp_path_factory.mktemp("far")
    path = folder / "my runs" / "run.zarr"
    with record(path) as writer:
        if state == "closed":
            writer.close()
        if how == "http":
            with served(folder) as (url, requests):
                yield Far(path, f"{url}/my%20runs/run.zarr", requests)
            return
        client, requests = request.getfixturevalue("bucket")
        for file in path.rglob("*"):
            if file.is_file():
                key = f"{state}/run.zarr/{file.relative_to(path)}"
                client.put_object(Bucket="runs", Key=key, Body=file.read_bytes())
        requests.clear()
        yield Far(path, f"s3://runs/{state}/run.zarr", requests)


def answers(run: Run) -> dict[str, Any]:
    """Return what a run says to every question."""
    strip, odd = run.activations["conv1"], run.weights[ODD]
    statistics = run.statistics("activations")
    status = run.status().to_dict()
    return {
        "kinds": run.kinds,
        "groups": run.groups(),
        "layers": [run.layers("activations"), run.layers("weights", "conv*")],
        "metadata": [run.id, run.metadata, run.ranks],
        "strip": [strip.shape, strip.dtype, strip.attributes, strip.steps, odd.steps],
        "frames": [strip.frame(), strip.frame(30), odd.frame(50), strip.frame(34, nearest=True)],
        "read": [
            strip.read(),
            strip.read(slice(20, 70)),
            strip.read([100, 0], (slice(3, 5), 7)),
            strip.read(slice(None), (..., slice(None, None, -2))),
            odd.read(slice(None, None, 30), 1),
        ],
        "statistics": [statistics.table(), statistics["conv1", "std"], statistics.bits("conv1")],
        "histograms": [
            statistics.histogram("*", slice(None), bins=9),
            strip.histogram(50),
            odd.histogram(0),
        ],
        "scalars": [list(run.scalars), run.scalars["train/loss"], list(run.health)],
        "nonfinite": run.nonfinite(),
        "status": {key: status[key] for key in status.keys() - {"path", "age", "bytes"}},
        "differences": run.diff(run, layers="conv1", steps=slice(0, 30)),
    }


def test_every_question_has_the_answer_of_the_local_path(far: Far) -> None:
    far.requests.clear()
    run = open_run(far.url)
    said, expected = answers(run), answers(open_run(far.local))

    assert said.keys() == expected.keys()
    for question, answer in expected.items():
        np.testing.assert_equal(said[question], answer, question)
    assert run.status().bytes is None
    assert run.name == "run.zarr"
    assert run.path == far.url
    assert far.requests  # and nothing was listed:
    for method, path, _, _ in far.requests:
        assert method in ("GET", "HEAD")
        assert re.search(r"/(zarr\.json|c(\.\d+)+)$", path), path  # a file, and no query


def test_xarray_and_zarr_open_it(far: Far) -> None:
    options: Any = {"allow_http": True}
    store: Any = obstore.store.from_url(far.url, client_options=options)
    far.requests.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objects: Any = ObjectStore(store, read_only=True)
        dataset = xarray.open_zarr(objects, group="activations")
        np.testing.assert_array_equal(dataset.step, STEPS)
        np.testing.assert_array_equal(dataset["conv1"].sel(step=30), frame(30))
        tree = xarray.open_datatree(objects, engine="zarr")
        np.testing.assert_array_equal(tree["scalars"].step, STEPS)
        strip: Any = zarr.open_group(objects, mode="r")["weights/conv1"]
        assert strip.shape == (len(STEPS), 16, 40, 50)
        np.testing.assert_array_equal(strip[4], frame(STEPS[4]))

    assert not any("list-type" in path or path.endswith("/") for _, path, _, _ in far.requests)


def test_a_frame_is_read_by_its_range(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr").close()
    with served(tmp_path) as (url, requests):
        strip = open_run(f"{url}/run.zarr").weights["conv1"]
        assert strip.frame(50).shape == (16, 40, 50)
        requests.clear()
        np.testing.assert_array_equal(strip.frame(50), frame(50))

    data = [one for one in requests if "conv1/c." in one.path and one.method == "GET"]
    shard = (tmp_path / "run.zarr/weights/conv1/c.0.0.0.0").stat().st_size
    assert data
    assert all(one.range is not None for one in data)
    assert sum(one.sent for one in data) < strip.nbytes + 20_000 < shard / 4


def test_a_live_run_grows(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as writer, served(tmp_path) as (url, _):
        weights = writer.writer("weights", {"w": FrameSpec((2,), "float32")})
        weights.append(0, {"w": np.zeros(2, np.float32)})
        writer.publish()
        run = open_run(f"{url}/run.zarr")
        assert run.weights["w"].steps.tolist() == [0]
        weights.append(1, {"w": np.ones(2, np.float32)})
        writer.log(1, {"loss": 0.5})
        writer.publish()

        assert run.weights["w"].steps.tolist() == [0, 1]
        np.testing.assert_array_equal(run.weights["w"].frame(), [1, 1])
        assert run.scalars["loss"].values.tolist() == [0.5]
        assert run.status().state == "running"


def test_ranks_are_found_by_url(tmp_path: Path) -> None:
    whole = np.arange(4, dtype=np.float32)
    for rank in (0, 1):
        spec = FrameSpec((2,), "float32", global_shape=(4,), offset=(2 * rank,))
        with create_run(tmp_path / "run.zarr", rank=rank, world_size=3) as run:
            run.writer("weights", {"w": spec}).append(0, {"w": whole[2 * rank : 2 * rank + 2]})
    with served(tmp_path) as (url, _):
        far = open_run(f"{url}/run.zarr")
        frame = far.weights["w"].frame(0)
        assert far.ranks == (0, 1)
        assert far.status().missing == (2,)
        alone = open_run(f"{url}/run.zarr/ranks/0001")
        assert alone.weights["w"].pieces[0].frame(0).tolist() == [2, 3]

    np.testing.assert_array_equal(frame, whole)


def refused(url: str, error: type[Exception], message: str) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=message) as caught:
        open_run(url)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 15


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path, bucket: Any) -> None:
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    (tmp_path / "page").mkdir()
    (tmp_path / "page/zarr.json").write_text("<html>log in first</html>")
    with served(tmp_path) as (url, _):
        refused(f"{url}/none.zarr", RunNotFoundError, "no run at http.*none.zarr")
        refused(f"{url}/other.zarr", NotARunError, "something else")
        refused(f"{url}/page", FormatError, "not JSON")
    refused("s3://runs/none.zarr", RunNotFoundError, "no run at s3://runs/none.zarr")
    refused("s3://no-such-bucket/run.zarr", StoreError, "s3://no-such-bucket/run.zarr")
    refused(f"{url}/run.zarr", StoreError, "cannot be read: .*error sending request")
    refused("gopher://old/run.zarr", StoreError, "gopher://old/run.zarr")


def test_a_server_without_ranges_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "run.zarr").close()
    with served(tmp_path) as (url, _):
        answer = _Files._answer

        def whole(handler: _Files) -> None:
            del handler.headers["Range"]
            answer(handler)

        monkeypatch.setattr(_Files, "_answer", whole)
        run = open_run(f"{url}/run.zarr")
        with pytest.raises(StoreError, match="Range request not supported") as caught:
            run.weights["conv1"].frame(50)
    assert "\n" not in str(caught.value)


def test_without_obstore_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'filmstrip\[remote\]'"):
        open_run("s3://bucket/run.zarr")
    monkeypatch.setattr(sys, "argv", ["filmstrip", "ls", "s3://bucket/run.zarr"])
    with pytest.raises(SystemExit) as caught:
        main()

    assert caught.value.code == 1
    assert "filmstrip[remote]" in capsys.readouterr().err


def test_where_nobody_may_list_what_is_absent_is_told_from_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmstrip.store._layout.COLUMN_ROWS", 4)
    spec = {"fc": FrameSpec((3,), "float32"), "later": FrameSpec((3,), "float32")}
    with create_run(tmp_path / "run.zarr", world_size=2) as run:
        writer = run.writer("weights", spec)
        run.writer("gradients", spec)  # nothing is written, so that no file of steps is there
        for step in range(8):  # the file of steps is full: another one is looked for
            writer.append(step, {"fc": np.full(3, step, np.float32)})

    with served(tmp_path, absent=403) as (url, _):
        far = open_run(f"{url}/run.zarr")
        assert far.weights["fc"].steps.tolist() == list(range(8))
        assert far.weights["fc"].frame(-1).tolist() == [7, 7, 7]
        assert far.steps("gradients").tolist() == []
        assert (far.ranks, far.status().missing) == ((0,), (1,))
        with pytest.raises(
            StoreError, match=r"later/c\.0\.0 .*not there, or access is denied"
        ) as e:
            far.weights["later"].steps  # noqa: B018
        assert "ListBucket" in str(e.value)
        with pytest.raises(StoreError, match=r"none\.zarr/zarr\.json .*not there, or access"):
            open_run(f"{url}/none.zarr")
        (tmp_path / "run.zarr/weights/step/c.1").unlink()
        with pytest.raises(StoreError, match=r"step/c\.1 .*access is denied"):
            far.weights["fc"].steps  # noqa: B018


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_url_is_a_path_on_this_machine(tmp_path: Path, host: str) -> None:
    create_run(tmp_path / "run.zarr").close()

    assert open_run(f"file://{host}{tmp_path}/run.zarr").path == str(tmp_path / "run.zarr")


def test_a_file_url_of_another_host_is_refused_in_one_line() -> None:
    with pytest.raises(StoreError, match="names the host 'data'; a path on this machine is") as e:
        open_run("file://data/run.zarr")
    assert "file:///run.zarr" in str(e.value)
