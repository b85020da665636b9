"""rnp_serve_example under load: every answer compared with the right one, then a SIGTERM in the middle.

    python benchmarks/cpp_server_load.py PROGRAM PACKAGE [--requests 10000] [--connections 16] [OPTION...]

PROGRAM is a built rnp_serve_example, PACKAGE a bundle or engine set; further OPTIONs are the server's, after "--".
The images are drawn anew, half of them asked as JSON; a third has the agent's own penalty, the others one each. The
right answers are the Python controller's, on ONNX Runtime. The clients are threads of one Python process beside the
server, on the same cores, and take more of them than it does: requests a second are a lower bound.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns, sleep

import click
import numpy as np

from rnp_deploy import Controller, Result

DISTINCT = 512


@dataclass
class Load:
    """What is sent, and what came of it."""

    port: int
    bodies: list[tuple[str, bytes, str]]
    right: Result
    outcomes: Counter[str] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def outcome(self, connection: http.client.HTTPConnection, index: int, fresh: bool) -> str:
        """Of one request: "right", "wrong", a status, or what became of the connection."""
        path, body, kind = self.bodies[index]
        start = perf_counter_ns()
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except ConnectionRefusedError:
            return "refused"
        except (ConnectionError, http.client.HTTPException):
            connection.close()
            return "never answered on a new connection" if fresh else "lost"
        except OSError:
            return "hung"
        if response.status != 200:
            return str(response.status)
        self.took_ms.append((perf_counter_ns() - start) / 1e6)
        self.batches.append(answer["batch"])
        same = answer["options"] == self.right.options[index].tolist()
        return (
            "right"
            if same and np.allclose(answer["outputs"], self.right.outputs[index], atol=1e-5)
            else "wrong"
        )

    def send(self, indices: range, until_refused: bool) -> None:
        """One connection's share."""
        connection, fresh = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), True
        while True:
            for index in indices:
                outcome = self.outcome(connection, index % len(self.bodies), fresh)
                self.outcomes[outcome] += 1
                if outcome in ("refused", "hung"):
                    return
                fresh = outcome not in ("right", "wrong")
            if not until_refused:
                return

    def run(self, requests: int, connections: int, until_refused: bool = False) -> float:
        """All of it; seconds."""
        shares = [range(number, requests, connections) for number in range(connections)]
        threads = [threading.Thread(target=self.send, args=(share, until_refused)) for share in shares]
        start = perf_counter_ns()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (perf_counter_ns() - start) / 1e9


def asked(controller: Controller) -> tuple[list[tuple[str, bytes, str]], Result]:
    """Path, body and type of each request, and the right results."""
    generator = np.random.default_rng(0)
    shape = (DISTINCT, *controller.manifest.inputs[0].shape)
    images = generator.standard_normal(shape, np.float32) * np.linspace(
        0.5, 2, DISTINCT, dtype=np.float32
    ).reshape(-1, *[1] * (len(shape) - 1))
    low, high = controller.manifest.agent.penalty_range or (0.0, 1.0)
    prices = np.round(generator.uniform(low, high, DISTINCT), 4).tolist()
    own = controller.manifest.agent.penalty
    bodies: list[tuple[str, bytes, str]] = []
    for index, image in enumerate(images):
        if index % 3 == 0:
            prices[index] = own
        if index % 2:
            query = "" if index % 3 == 0 else f"?penalty={prices[index]}"
            bodies.append((f"/v1/classify{query}", image.tobytes(), "application/octet-stream"))
        else:
            document = {"image": image.tolist()} | ({} if index % 3 == 0 else {"penalty": prices[index]})
            bodies.append(("/v1/classify", json.dumps(document).encode(), "application/json"))
    return bodies, controller.run(images, penalty=prices)


@click.command()
@click.argument("program", type=click.Path(exists=True, path_type=Path))
@click.argument("package", type=click.Path(exists=True, path_type=Path))
@click.argument("options", nargs=-1)
@click.option("--requests", default=10_000, show_default=True)
@click.option("--connections", default=16, show_default=True)
def main(program: Path, package: Path, options: tuple[str, ...], requests: int, connections: int) -> None:
    """Print what was answered, and how fast."""
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        bodies, right = asked(controller)
    click.echo(
        f"{len(np.unique(right.options, axis=0))} paths among {DISTINCT} images; {os.cpu_count()} cores"
    )
    for killed in (False, True):
        command = [str(program), str(package), "--quiet", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            load = Load(int(server.stdout.readline().rsplit(":", 1)[1]), bodies, right)
            if killed:
                killer = threading.Thread(target=lambda: (sleep(3), server.send_signal(signal.SIGTERM)))
                killer.start()
            seconds = load.run(requests, connections, until_refused=killed)
            if not killed:
                server.terminate()
            status = server.wait(60)
        p50, p90, p99 = np.percentile(load.took_ms, (50, 90, 99))
        click.echo(
            f"{'SIGTERM after 3 s: ' if killed else ''}{dict(load.outcomes)}, exit status {status}; "
            f"{len(load.took_ms) / seconds:.0f} requests/s, p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms, "
            f"{np.mean(load.batches):.2f} images a batch as an image sees it"
        )


if __name__ == "__main__":
    main()
