"""A running rnp_serve_example, and what is asked of it."""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["JSON", "RAW", "Answer", "Served", "load", "samples_from", "serving"]

RAW, JSON = "application/octet-stream", "application/json"


@dataclass(frozen=True)
class Answer:
    """``headers`` by lower-case name."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    def connect(self, timeout: float = 20) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """One request, on a connection of its own where none is given."""
        used = connection or self.connect()
        try:
            given = {**({} if content_type is None else {"Content-Type": content_type}), **(headers or {})}
            used.request(method, path, body, given)
            response = used.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.read(), found)
        finally:
            if connection is None:
                used.close()

    def classify(
        self, image: Any, penalty: float | None = None, *, raw: bool = True, connection: Any = None
    ) -> Answer:
        if raw:
            path = "/v1/classify" + ("" if penalty is None else f"?penalty={penalty}")
            return self.ask("POST", path, image.astype("<f4").tobytes(), RAW, connection=connection)
        asked = {"image": image.tolist(), **({} if penalty is None else {"penalty": penalty})}
        return self.ask("POST", "/v1/classify", json.dumps(asked), JSON, connection=connection)

    def end(self, timeout: float = 30) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def serving(
    program: Path, package: Path, *options: str | float, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Start it on a free port, and end it whatever happens."""
    command = [str(program), str(package), *map(str, options)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), process.stderr.read()
            served = Served(process, int(line.rsplit(":", 1)[1]))
            # Read as it comes: a full pipe would stop the server.
            stderr = process.stderr
            reader = threading.Thread(target=lambda: served.log.extend(stderr), daemon=True)
            reader.start()
            yield served
            if process.poll() is None:
                process.terminate()
                process.wait(30)
            reader.join(30)
        finally:
            process.kill()


def load(
    served: Served,
    images: np.ndarray,
    penalties: Sequence[float | None],
    connections: int = 16,
    *,
    until_refused: bool = False,
) -> list[list[tuple[int, Answer | str]]]:
    """By connection: which image, and its answer, or what became of the connection.

    Connections are kept alive. Each sends its share of the images once; or with ``until_refused`` goes on until
    nobody listens any more. "refused": nobody listened; "unanswered": on a new connection that
    was ended without a byte of an answer; "lost": on a connection that had been answered before.
    """
    results: list[list[tuple[int, Answer | str]]] = [[] for _ in range(connections)]

    def client(number: int) -> None:
        connection, fresh = served.connect(), True
        mine = range(number, len(images), connections)
        for index in mine if not until_refused else itertools.cycle(mine):
            outcome = _outcome(served, connection, images[index], penalties[index], index % 2 == 0, fresh)
            results[number].append((index, outcome))
            if isinstance(outcome, str) and outcome not in ("unanswered", "lost"):
                break
            fresh = isinstance(outcome, str) or outcome.headers.get("connection") == "close"
            if fresh:
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a connection hangs"
    return results


def _outcome(
    served: Served,
    connection: http.client.HTTPConnection,
    image: np.ndarray,
    penalty: float | None,
    raw: bool,
    fresh: bool,
) -> Answer | str:
    try:
        return served.classify(image, penalty, raw=raw, connection=connection)
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionError, http.client.HTTPException):
        return "unanswered" if fresh else "lost"
    except OSError as err:  # a time-out
        return f"hung: {err!r}"


def samples_from(text: str) -> dict[str, float]:
    """Prometheus' text form: name with labels → value; every sample's family was described before."""
    samples: dict[str, float] = {}
    described: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            described.add(line.split()[2])
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in samples, f"{name} stands there twice"
            family = name.split("{")[0]
            assert {family, *(family.removesuffix(end) for end in ("_bucket", "_sum", "_count"))} & described
            samples[name] = float(value)
    return samples
