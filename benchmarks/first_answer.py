"""Milliseconds from before the imports to the first answer: run by static_rivals.py, a process for each time.

    python benchmarks/first_answer.py engines|bundle|static FOLDER THREADS

FOLDER is what scripted_networks.py made; ``static`` is its dense static graph, without rnp_deploy.
"""

# ruff: noqa: E402 - imports are what is timed

from time import perf_counter_ns

start_ns = perf_counter_ns()

import sys
from pathlib import Path

import numpy as np

kind, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
images = np.zeros((1, 3, 224, 224), np.float32)
if kind == "static":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    weights = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(weights, str(folder / "bundle"))
    graph = (folder / "static-4.onnx").read_bytes()
    onnxruntime.InferenceSession(graph, options).run(None, {"images": images})
else:
    from rnp_deploy import Controller

    Controller.load(folder / kind, threads=threads, preload="none", cache_dir="").run(images)
print((perf_counter_ns() - start_ns) / 1e6)  # noqa: T201
