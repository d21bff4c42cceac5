"""`loldu-serve` as a process with a Ray cluster of its own, asked over HTTP."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loldu.base.config import BaseModelConfig
from tests.ray_cluster import PATIENCE_S, ROOT, cluster, free_port, processes
from tests.webui.concepts import teach
from webui.drawing.settings import read_png
from webui.drawing.studio import Picture
from webui.serving.order import read_order
from webui.serving.painter import Painter
from webui.serving.shelf import Shelf

pytest.importorskip("ray", reason="needs ray: make test-ray")
pytestmark = pytest.mark.ray

REPLICA = "ServeReplica:loldu:Draw"
KEY = "sk-0123456789abcdef"
NAMES = [f"toy{letter}" for letter in "abcdef"]
QUEUE = 24


class Server:
    def __init__(self, url: str, metrics: int, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.metrics = metrics
        self.process = process

    def ask(self, path: str, body: object = None, key: str | None = KEY) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["message"]

    def draw(self, **body: object) -> tuple[int, Any]:
        return self.ask("/v1/images/generations", body)


@pytest.fixture(scope="module")
def concepts(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concepts")
    for seed, name in enumerate(NAMES):
        prompt = f"a photo of a {name} toy"
        path = folder / f"{name}.safetensors"
        teach(base_folder, path, seed, prompt, token=name, class_name="toy")
    return folder


@pytest.fixture(scope="module")
def server(
    base_folder: Path, concepts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    keys, log, port = folder / "keys.toml", folder / "log.txt", free_port()
    keys.write_text(f"[us]\nkey = '{KEY}'\n[few]\nkey = '{KEY}-few'\npictures_a_minute = 2\n")
    flags = {
        "base": base_folder,
        "concepts": concepts,
        "keys": keys,
        "port": port,
        "resident": 3,
        "max_queue": QUEUE,
        "num_inference_steps": 2,
        "guidance_scale": 3,
        "most_px": 64,
    }
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with cluster() as ray, log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "webui.serve", *argv],
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        metrics = ray.nodes()[0]["MetricsExportPort"]
        try:
            begun = time.monotonic()
            while b"Drawing with 6 concepts" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < begun + PATIENCE_S, log.read_text()
                time.sleep(0.5)
            yield Server(f"http://127.0.0.1:{port}", metrics, process)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
            assert not processes(REPLICA)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def painter(base_folder: Path, concepts: Path) -> Painter:
    return Painter(BaseModelConfig(str(base_folder)), "cpu", Shelf(str(concepts)))


def bodies(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"a photo of a {NAMES[index % len(NAMES)]} toy",
            "seed": index,
            "strength": (0.5, 1.0, 1.3)[index % 3],
            **({"negative_prompt": "dark"} if index % 2 else {}),
        }
        for index in range(count)
    ]


def assert_as_drawn_alone(painter: Painter, body: dict[str, Any], answer: Any) -> None:  # noqa: ANN401
    defaults = {"num_inference_steps": 2, "guidance_scale": 3.0}
    shelf = painter._shelf
    (alone,) = painter.draw(read_order(json.dumps(body).encode(), shelf, defaults).asks)
    assert isinstance(alone, Picture)
    (one,) = answer["data"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))).astype(int)
    assert np.abs(image - np.asarray(alone.image)).max() <= 1
    assert one["seed"] == body["seed"]


def test_mixed_requests_of_many_clients_get_the_pictures_drawn_alone(
    server: Server, painter: Painter, tmp_path: Path
) -> None:
    asked = bodies(40)
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda body: server.draw(**body), asked))
    assert {status for status, _ in answers} == {200}
    for body, (_, answer) in zip(asked, answers, strict=True):
        assert_as_drawn_alone(painter, body, answer)
    picture = tmp_path / "one.png"
    picture.write_bytes(base64.b64decode(answers[1][1]["data"][0]["b64_json"]))
    settings = read_png(picture)
    assert (settings.seed, settings.concepts[0].name) == (1, "toyb")
    assert "ray_serve_" in metrics_of(server)


def metrics_of(server: Server) -> str:
    address = f"http://127.0.0.1:{server.metrics}/metrics"
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def test_a_named_concept_gets_its_words_and_n_pictures(server: Server) -> None:
    status, answer = server.draw(
        prompt="a toy in the snow", model="toyc", n=2, seed=3, size="32x32"
    )
    assert status == 200
    assert [one["seed"] for one in answer["data"]] == [3, 4]
    assert {one["revised_prompt"] for one in answer["data"]} == {"a toyc toy in the snow"}
    image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert image.size == (32, 32)


def test_models_and_health(server: Server) -> None:
    status, listed = server.ask("/v1/models")
    assert status == 200
    assert [each["id"] for each in listed["data"]] == ["base", *NAMES]
    assert server.ask("/v1/models/toyb")[1]["word"] == "toyb"
    assert server.ask("/health", key=None) == (200, {"status": "ok", "replicas": 1})


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "sentence"),
    [
        ("", {"prompt": "toy", "model": "toyz"}, KEY, 404, "no concept 'toyz'; perhaps you meant"),
        ("", {"prompt": "word " * 10_000}, KEY, 400, "has 50,000 characters, and the most"),
        ("", {"prompt": "x" * 2**21}, KEY, 413, "more than 1 MiB"),
        ("", {"prompt": "toy", "size": "4096x4096"}, KEY, 400, "squares of at most 64 pixels"),
        ("", {"prompt": "toy"}, None, 401, "The key is unknown"),
        ("", {"prompt": "toy", "n": 3}, f"{KEY}-few", 429, "may have 2 pictures a minute"),
        ("", None, KEY, 405, "Send the request as POST"),
        ("/v1/nothing", {}, KEY, 404, "There is no /v1/nothing"),
    ],
)
def test_a_bad_request_gets_a_sentence(
    server: Server, path: str, body: object, key: str | None, status: int, sentence: str
) -> None:
    answer = server.ask(path or "/v1/images/generations", body, key)
    assert answer[0] == status
    assert sentence in answer[1]


def test_a_full_queue_refuses_and_forgets_nothing(server: Server) -> None:
    many = {"prompt": "a toya toy", "n": 16, "num_inference_steps": 10}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda seed: server.draw(**many, seed=seed), range(8)))
    refused = [said for status, said in answers if status == 429]
    drawn = [answer for status, answer in answers if status == 200]
    assert len(refused) + len(drawn) == 8
    assert refused[0].startswith(f"{QUEUE} pictures are waiting, which is the most")
    assert drawn
    assert server.draw(prompt="a toya toy", seed=1)[0] == 200


def test_a_killed_replica_loses_no_request(server: Server, painter: Painter) -> None:
    asked = [{**body, "num_inference_steps": 2} for body in bodies(18)]
    (before,) = processes(REPLICA)
    answered = threading.Semaphore(0)

    def draw(body: dict[str, Any]) -> tuple[int, Any]:
        answer = server.draw(**body)
        answered.release()
        return answer

    with ThreadPoolExecutor(18) as clients:
        waiting = [clients.submit(draw, body) for body in asked]
        assert answered.acquire(timeout=PATIENCE_S)  # it draws, and others wait
        before.kill()
        answers = [each.result(PATIENCE_S) for each in waiting]
    assert [status for status, _ in answers] == [200] * 18
    for body, (_, answer) in zip(asked, answers, strict=True):
        assert_as_drawn_alone(painter, body, answer)
    (after,) = processes(REPLICA)
    assert after.pid != before.pid
