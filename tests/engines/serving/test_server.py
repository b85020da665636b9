"""rnp_serve_example: every request is answered once, with what the Python controller gives."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

from rnp_deploy import Controller
from served_network import export_served
from serving_build import built, environment, missing
from serving_client import JSON, RAW, load, samples_from, serving

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

IMAGES = 96
TOLERANCE = 1e-5


def server_program(kind):
    program = built(kind) / "rnp_serve_example"
    if not program.exists():
        missing("cpp-httplib is not installed; apt install libcpp-httplib-dev")
    return program


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "bundle"
    export_served(path)
    return path


@pytest.fixture(scope="module")
def images():
    contrasts = np.linspace(0.5, 3, IMAGES, dtype=np.float32).reshape(-1, 1, 1, 1)
    return np.random.default_rng(3).standard_normal((IMAGES, 1, 16, 16), dtype=np.float32) * contrasts


@pytest.fixture(scope="module")
def penalties():
    return [
        None if index % 3 == 0 else round(0.2 * (index * 7 % IMAGES) / IMAGES - 0.1, 4)
        for index in range(IMAGES)
    ]


@pytest.fixture(scope="module")
def expected(package, images, penalties):
    """Python's results, in the order of the images."""
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        own = controller.manifest.agent.penalty
        return controller.run(images, penalty=[own if price is None else price for price in penalties])


@pytest.fixture(scope="module")
def serve(package):
    """Options, kind of build → a running server."""

    def start(*options, kind="plain", path=None):
        program = server_program(kind)
        settings = dict(environment(kind))
        return serving(program, path or package, *options, env=settings)

    return start


def check_answer(answer, index, expected):
    assert answer.status == 200, answer.body
    found = answer.json
    assert found["options"] == expected.options[index].tolist()
    np.testing.assert_allclose(found["outputs"], expected.outputs[index], atol=TOLERANCE)
    best = int(np.argmax(expected.outputs[index]))
    assert (found["class"], found["label"]) == (best, f'class "{best}"')
    assert found["macs"] == expected.macs[index]
    assert 0 < found["macs_share"] <= 1
    assert found["queue_ms"] >= 0
    assert found["run_ms"] > 0


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "json"])
def test_answers_are_those_of_the_python_controller(serve, images, penalties, expected, raw):
    assert len({tuple(row) for row in expected.options.tolist()}) > 2, (
        "images that all take one path show nothing"
    )
    with serve("--max-delay-ms", 0) as served:
        connection = served.connect()
        for index in range(12):
            answer = served.classify(images[index], penalties[index], raw=raw, connection=connection)
            check_answer(answer, index, expected)
            assert answer.json["batch"] == 1
        connection.close()


def test_flat_images_and_targets_of_macs(serve, package, images):
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        wanted = controller.run(images[:1], target_macs=0.4)
        price = controller.manifest.calibration.penalty_for(0.4)
    body = json.dumps({"image": images[0].ravel().tolist(), "target_macs": 0.4})
    with serve() as served:
        flat = served.ask("POST", "/v1/classify", body, JSON + "; charset=utf-8").json
        raw = served.ask("POST", "/v1/classify?target_macs=0.4", images[0].tobytes(), RAW).json
    for found in (flat, raw):
        assert found["options"] == wanted.options[0].tolist()
        assert found["penalty"] == pytest.approx(price)


def test_the_servers_penalty_stands_where_a_request_names_none(serve, package, images):
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        wanted = controller.run(images[:8], penalty=0.75)
    with serve("--penalty", 0.75) as served:
        assert served.ask("GET", "/v1/model").json["penalty"] == 0.75
        for index in range(8):
            assert served.classify(images[index]).json["options"] == wanted.options[index].tolist()


def check_metrics(served, expected, results):
    """What the server counted is what was sent."""
    text = served.ask("GET", "/metrics")
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = samples_from(text.body.decode())
    answered = [(index, answer) for connection in results for index, answer in connection]
    assert samples['rnp_requests_total{code="200"}'] == len(answered)
    for decision, column in enumerate(expected.options[[index for index, _ in answered]].T):
        for option in range(1, 5):
            (name,) = (
                key
                for key in samples
                if key.startswith(f'rnp_decisions_total{{decision="{decision}",conv="')
                and key.endswith(f'option="{option}"}}')
            )
            assert samples[name] == np.count_nonzero(column == option)
    shares = sum(answer.json["macs_share"] for _, answer in answered)
    assert samples["rnp_macs_share_sum"] == pytest.approx(shares)
    for name, count in (
        ("rnp_macs_share_count", len(answered)),
        ("rnp_batch_size_sum", len(answered)),
        ("rnp_request_duration_seconds_count", len(answered)),
        ('rnp_request_duration_seconds_bucket{le="+Inf"}', len(answered)),
        ("rnp_queue_length", 0),
    ):
        assert samples[name] == count, name
    runs = sum(1 / answer.json["batch"] for _, answer in answered)
    assert samples["rnp_batch_size_count"] == pytest.approx(runs)
    assert any(name.startswith('rnp_package_info{kind="bundle"') for name in samples)


@pytest.mark.parametrize("kind", ["plain", "asan", "tsan"])
def test_sixteen_connections_at_once(serve, images, penalties, expected, kind):
    with serve("--workers", 2, kind=kind) as served:
        results = load(served, images, penalties)
        assert sorted(index for connection in results for index, _ in connection) == list(range(IMAGES))
        for index, answer in (pair for connection in results for pair in connection):
            check_answer(answer, index, expected)
        assert max(answer.json["batch"] for connection in results for _, answer in connection) > 1
        check_metrics(served, expected, results)
        assert served.end() == 0, "".join(served.log[-40:])


def test_a_full_queue_refuses_and_nothing_is_lost(serve, images, penalties, expected):
    # The two that wait are too few for a batch, and go once their delay is over.
    with serve("--queue", 2, "--max-batch", 8, "--max-delay-ms", 700) as served:
        results = load(served, images[:8], penalties[:8], 8)
        answers = [pair for connection in results for pair in connection]
        assert sorted(index for index, _ in answers) == list(range(8))
        assert sorted(answer.status for _, answer in answers) == [200] * 2 + [503] * 6
        for index, answer in answers:
            if answer.status == 200:
                check_answer(answer, index, expected)
            else:
                assert answer.headers["retry-after"] == "1"
                assert "too many" in answer.json["error"]
        samples = samples_from(served.ask("GET", "/metrics").body.decode())
        assert samples['rnp_requests_total{code="503"}'] == 6
        assert served.classify(images[0]).status == 200


def test_requests_that_do_not_fit(serve, images):
    image = images[0]
    good, flat = image.tobytes(), image.ravel().tolist()
    nan = np.full_like(image, np.nan).tobytes()
    cases = [
        (b"", RAW, "", 400, "expected 1024 bytes, float32 [1, 16, 16]; got 0"),
        (good[:-1], RAW, "", 400, "got 1023"),
        (good + b"0", RAW, "", 400, "got 1025"),
        (nan, RAW, "", 400, "value 0 is not a finite"),
        (good, RAW, "?penalty=dear", 400, "penalty in the URL"),
        (good, RAW, "?penalty=inf", 400, "penalty in the URL"),
        (good, RAW, "?penalty=1&penalty=2", 400, "penalty in the URL"),
        (good, RAW, "?target_mac=0.5", 400, '"target_mac" in the URL is not known'),
        (b"{}", JSON, "?penalty=1", 400, "JSON says all in its body"),
        (good, RAW, "?penalty=1e300", 400, "penalty is not a finite"),
        (good, RAW, "?penalty=1&target_macs=0.5", 400, "pass one of them"),
        (good, RAW, "?target_macs=1e300", 400, "target_macs is not a finite"),
        (good, RAW, "?target_macs=2", 400, "target_macs"),
        (good, RAW, "?target_macs=0.01", 400, "target_macs"),
        (b"{", JSON, "", 400, "no JSON"),
        (b"[" * 5000, JSON, "", 400, "deep"),
        (b"\xff", JSON, "", 400, "no JSON"),
        (b"[]", JSON, "", 400, "no JSON object"),
        (b"{}", JSON, "", 400, "image is missing"),
        (json.dumps({"image": flat[1:]}), JSON, "", 400, "expected 256 numbers"),
        (json.dumps({"image": [flat]}), JSON, "", 400, "nested as [1, 16, 16]; got an array [1, 256]"),
        (json.dumps({"image": flat, "penalty": []}), JSON, "", 400, "penalty is no number"),
        (json.dumps({"image": [*flat[1:], 1e39]}), JSON, "", 400, "value 255 is not a finite float32"),
        (json.dumps({"image": flat, "penalty": -1e300}), JSON, "", 400, "penalty is not a finite"),
        (json.dumps({"image": flat, "foo": 1}), JSON, "", 400, '"foo" is no field'),
        (b"--b\r\n" + good, "multipart/form-data; boundary=b", "", 415, "application/octet-stream"),
        (good, "text/plain", "", 415, "application/octet-stream"),
        (good, "", "", 415, "application/json"),
        (b"0" * 20_000, RAW, "", 413, "more than 10000 bytes"),
        (b"0" * 170_000, JSON, "", 413, "more than 10000 bytes"),
        (iter([b"0" * 6000, b"0" * 6000]), RAW, "", 413, "more than 10000 bytes"),
    ]
    with serve("--max-body-bytes", 10000, kind="asan") as served:
        for body, content_type, query, status, words in cases:
            answer = served.ask("POST", f"/v1/classify{query}", body, content_type)
            assert (answer.status, words in answer.json["error"]) == (status, True), answer.body
            assert answer.headers["content-type"] == JSON
        # In chunks, on a connection that goes on; then the connection is as good as before.
        connection = served.connect()
        answer = served.ask(
            "POST", "/v1/classify", iter([good[:500], good[500:]]), RAW, connection=connection
        )
        assert answer.status == 200
        assert served.classify(image, connection=connection).status == 200
        connection.close()
        samples = samples_from(served.ask("GET", "/metrics").body.decode())
        counted = {code: samples[f'rnp_requests_total{{code="{code}"}}'] for code in (200, 400, 413, 415)}
        statuses = [status for _, _, _, status, _ in cases]
        assert counted == {200: 2, **{code: statuses.count(code) for code in (400, 413, 415)}}
        assert served.end() == 0, "".join(served.log[-40:])


@pytest.mark.parametrize(
    ("start", "headers", "status"),
    [
        ("POST /v1/classify", "Content-Type: multipart/form-data; boundary=b", 415),
        ("POST /v1/classify", "Range: bytes=nonsense", 416),
        ("POST /healthz", "Range: bytes=0-1", 405),
        ("POST /healthz", "Range: bytes=0-1,2-3", 405),
        ("PUT /metrics", "Content-Type: multipart/form-data; boundary=b", 405),
        ("HEAD /healthz", "Accept: */*", 200),
    ],
)
def test_a_body_is_never_taken_for_a_request(serve, start, headers, status):
    """What lies in it is a request, which nobody may answer."""
    inner = b"GET /v1/model HTTP/1.1\r\nHost: a\r\n\r\n"
    for body in (inner, b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--b--\r\n" + inner):
        with serve() as served, socket.create_connection(("127.0.0.1", served.port), 10) as connection:
            head = f"{start} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{headers}\r\n\r\n"
            connection.sendall(head.encode())
            time.sleep(0.1)  # so that the body is what comes next on the connection
            answers = _rest_of(connection, body)
        assert answers.count(b"HTTP/1.1 ") == 1, answers
        assert answers.startswith(f"HTTP/1.1 {status} ".encode()), answers
        assert b"Connection: close" in answers


def test_ranges_are_not_looked_at(serve, images):
    with serve() as served:
        for ranges in ("bytes=0-1", "bytes=0-1,3-4", "bytes=100000-"):
            answer = served.ask("GET", "/healthz", headers={"Range": ranges})
            assert (answer.status, answer.json) == (200, {"status": "ready"})
            answer = served.ask("POST", "/v1/classify", images[0].tobytes(), RAW, {"Range": ranges})
            assert (answer.status, len(answer.json["outputs"])) == (200, 10)


def test_outputs_that_are_not_finite_are_an_error(serve, images):
    huge = np.copysign(np.finfo(np.float32).max, images[0])
    with serve() as served:
        answer = served.classify(huge)
        assert (answer.status, answer.json["error"]) == (500, "the network gave a value that is not finite")
        assert served.classify(images[0]).status == 200


def test_the_time_of_a_refusal_is_counted(serve):
    with serve() as served, socket.create_connection(("127.0.0.1", served.port), 10) as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nContent-Length: 4\r\n\r\n12")
        time.sleep(0.3)
        slow.sendall(b"34")
        assert slow.recv(100).startswith(b"HTTP/1.1 415 ")
        samples = samples_from(served.ask("GET", "/metrics").body.decode())
        assert samples["rnp_request_duration_seconds_count"] == 1
        assert samples["rnp_request_duration_seconds_sum"] > 0.2


def test_other_paths_and_methods(serve):
    cases = [
        ("GET", "/healthz", 200, None),
        ("GET", "/v1/model", 200, None),
        ("GET", "/", 404, None),
        ("POST", "/v1/other", 404, None),
        ("GET", "/" + "a" * 8000, 404, None),
        ("GET", "/v1/classify", 405, "POST"),
        ("DELETE", "/v1/classify", 405, "POST"),
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("PUT", "/metrics", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/model", 405, "GET, HEAD"),
    ]
    with serve() as served:
        for method, path, status, allow in cases:
            answer = served.ask(method, path, b"{}" if method in ("POST", "PUT") else None)
            assert (answer.status, answer.headers.get("allow")) == (status, allow)
        assert served.ask("HEAD", "/healthz").status == 200
        model = served.ask("GET", "/v1/model").json
    assert model["input"] == {"shape": [1, 16, 16], "dtype": "float32"}
    assert len(model["classes"]) == 10
    assert [decision["options"] for decision in model["decisions"]] == [4] * len(model["decisions"])


def test_an_error_of_a_batch_is_every_requests_answer(serve, tmp_path, images):
    copied = tmp_path / "bundle"
    export_served(copied, calibrated=False)  # so that nothing is opened before the first request
    with serve("--max-batch", 4, "--max-delay-ms", 2000, path=copied) as served:
        weights = copied / "weights.bin"
        content = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        results = load(served, images[:4], [None] * 4, 4)
        answers = [answer for connection in results for _, answer in connection]
        assert [answer.status for answer in answers] == [500] * 4
        assert all("weights.bin" in answer.json["error"] for answer in answers)
        samples = samples_from(served.ask("GET", "/metrics").body.decode())
        assert samples['rnp_requests_total{code="500"}'] == 4
        assert samples["rnp_batch_size_count"] == 0


@pytest.mark.parametrize("kind", ["plain", "asan", "tsan"])
def test_killed_under_load_it_answers_what_it_accepted(serve, images, penalties, expected, kind):
    with serve("--workers", 2, "--quiet", kind=kind) as served:
        killer = threading.Timer(0.7, served.process.terminate)
        killer.start()
        results = load(served, images, penalties, until_refused=True)
        killer.join()
        assert served.process.wait(20) == 0, "".join(served.log[-40:])
    outcomes = [pair for connection in results for pair in connection]
    answered = [(index, answer) for index, answer in outcomes if not isinstance(answer, str)]
    assert {answer.status for _, answer in answered} <= {200, 503}
    for index, answer in answered:
        if answer.status == 200:
            check_answer(answer, index, expected)
        else:
            assert answer.headers["connection"] == "close"
    assert sum(answer.status == 200 for _, answer in answered) > 16
    assert {answer for _, answer in outcomes if isinstance(answer, str)} <= {"refused", "unanswered"}
    assert all(connection[-1][1] == "refused" for connection in results)


def test_what_waits_at_the_signal_is_answered(serve, images, penalties, expected):
    with serve("--max-delay-ms", 60_000) as served:
        answers = {}
        asked = [
            threading.Thread(
                target=lambda i=index: answers.update({i: served.classify(images[i], penalties[i])})
            )
            for index in range(3)
        ]
        idle = served.connect()
        assert served.ask("GET", "/healthz", connection=idle).status == 200
        half = served.connect()
        half.putrequest("POST", "/v1/classify")
        half.putheader("Content-Length", "1024")
        half.putheader("Content-Type", RAW)
        half.endheaders(images[0].tobytes()[:512])
        for thread in asked:
            thread.start()
        _until(lambda: b"rnp_queue_length 3" in served.ask("GET", "/metrics").body)
        served.process.terminate()
        for thread in asked:
            thread.join(10)
        for index in range(3):
            check_answer(answers[index], index, expected)
            assert answers[index].headers["connection"] == "close"
        # Connections that were open are told, and those that were half way too.
        told = served.ask("GET", "/healthz", connection=idle)
        assert (told.status, told.headers["connection"]) == (503, "close")
        half.send(images[0].tobytes()[512:])
        assert half.getresponse().status == 503
        half.close()
        assert served.process.wait(10) == 0


def test_the_end_is_bounded(serve):
    with serve("--drain-s", 1) as served, socket.create_connection(("127.0.0.1", served.port)) as half:
        half.sendall(b"POST /v1/classify HTTP/1.1\r\nContent-Length: 1024\r\n\r\n")
        time.sleep(0.2)
        start = time.monotonic()
        assert served.end() == 1
        assert time.monotonic() - start < 4


def test_the_log_is_a_line_of_json_an_event(serve, images):
    with serve() as served:
        served.classify(images[0])
        served.ask("GET", "/nothing")
        assert served.end() == 0
    events = [json.loads(line) for line in served.log]
    assert [event["event"] for event in events] == ["listening", "request", "request", "draining", "stopped"]
    assert [event.get("status") for event in events[1:3]] == [200, 404]
    assert all(event["time"] > 1e9 for event in events)
    with serve("--quiet") as served:
        served.classify(images[0])
        assert served.end() == 0
    assert served.log == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--port", "70000"], 1, "--port is 70000; pass an integer, 0 to 65535"),
        (["--workers", "none"], 1, '--workers is "none"'),
        (["--threads", "0"], 1, "--threads is 0"),
        (["--drain-s", "soon"], 1, '--drain-s is "soon"'),
        (["--drain-s", "-1"], 1, "--drain-s is -1"),
        (["--max-delay-ms", "-1"], 1, "--max-delay-ms is -1; pass a number, 0 to 60000"),
        (["--colour", "red"], 1, "--colour is no option"),
        (["--penalty", "1e300"], 1, "penalty is not a finite"),
        (["--host", "no.such.host.invalid"], 1, "cannot listen on no.such.host.invalid"),
        (["another"], 2, "rnp_serve_example PACKAGE"),
        (["--help"], 0, "rnp_serve_example PACKAGE"),
    ],
)
def test_arguments_that_do_not_fit(package, arguments, status, words):
    done = subprocess.run(
        [server_program("plain"), package, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, words in done.stderr + done.stdout) == (status, True), done.stderr


def test_a_package_that_is_damaged_is_not_served(package, tmp_path):
    copied = tmp_path / "bundle"
    shutil.copytree(package, copied)
    (copied / "weights.bin").write_bytes(b"")
    done = subprocess.run(
        [server_program("plain"), copied],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "weights.bin" in done.stderr


def _rest_of(connection, body):
    """What comes until the end, once the body is sent; a reset is an end."""
    received = b""
    try:
        connection.sendall(body)
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    return received


def _until(condition, timeout=10):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
