"""``rnp-run``: images → class, options, share of the MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.controller import Controller, Result
from rnp_deploy.engines.backends import BACKENDS, DEVICES
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import read_images
from rnp_deploy.tools.command import RnpCommand, parse_options, print_json

__all__ = ["main"]


@click.command("rnp-run", cls=RnpCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--penalty", type=float, help="Price of one more channel group; default: the agent's own.")
@click.option(
    "--target-macs",
    type=click.FloatRange(0, 1, min_open=True),
    help="Mean share of the full network's MACs to aim at, e.g. 0.3: takes the calibrated penalty.",
)
@click.option(
    "--target-latency-ms",
    type=click.FloatRange(0, min_open=True),
    help="Milliseconds for the batch of all IMAGES, 95 times of 100: takes the penalty of the latency curve.",
)
@click.option("--options", help="Take these options, e.g. 4,2,1 (one per decision), and skip the agent.")
@click.option(
    "--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="What computes."
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute; default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(
    path: Path,
    images: tuple[Path, ...],
    penalty: float | None,
    target_macs: float | None,
    target_latency_ms: float | None,
    options: str | None,
    as_json: bool,
    **load: Any,
) -> None:
    """Classify IMAGES with the bundle or engine set at PATH: class, options taken, share of the full network's MACs."""
    with Controller.load(path, **load) as controller:
        manifest = controller.manifest
        if manifest.preprocessing is None:
            raise InputError(f"{path} does not say how images become inputs; call Controller.run with arrays")
        if not manifest.agent_trained and options is None:
            click.echo(
                "the agent is untrained: it takes all groups everywhere; rnp-train trains one", err=True
            )
        if target_macs is not None and manifest.calibration is not None:
            click.echo(f"penalty {manifest.calibration.penalty_for(target_macs):.4g}", err=True)
        batch = read_images(images, manifest.preprocessing)
        forced = None if options is None else [parse_options(options)] * len(batch)
        rows = _rows(
            images,
            controller.run(
                batch,
                penalty=penalty,
                target_macs=target_macs,
                target_latency_ms=target_latency_ms,
                options=forced,
            ),
            manifest,
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        taken = ",".join(map(str, row["options"]))
        click.echo(
            f"{row['image']}: {row['class']} (p={row['probability']:.3f}), options {taken}, "
            f"{100 * row['macs_share']:.1f} % of the MACs"
        )


def _rows(images: tuple[Path, ...], result: Result, manifest: Manifest) -> list[dict[str, Any]]:
    rows = []
    for i, path in enumerate(images):
        logits = result.outputs[i].reshape(-1)
        exponents = np.exp(logits - logits.max())
        best = int(logits.argmax())
        rows.append(
            {
                "image": str(path),
                "class": manifest.classes[best] if manifest.classes else str(best),
                "class_index": best,
                "probability": float(exponents[best] / exponents.sum()),
                "options": result.options[i].tolist(),
                "macs": int(result.macs[i]),
                "macs_share": float(result.macs[i] / manifest.macs),
            }
        )
    return rows


if __name__ == "__main__":
    main()
