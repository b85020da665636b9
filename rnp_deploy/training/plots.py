"""Accuracy over MACs, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.errors import MissingRuntimeError
from rnp_deploy.training.baselines import AGENT, FIXED, BaselinePoint

__all__ = ["baselines_png", "calibration_png"]

_INCHES = (7.0, 4.5)


def calibration_png(calibration: Calibration) -> bytes:
    """The curve of a calibration: accuracy and penalty over the share of the MACs.

    Raises:
        MissingRuntimeError: matplotlib is not installed.
    """
    figure = _figure()
    axes = figure.subplots()
    shares = [100 * point.macs_share for point in calibration.points]
    axes.plot(shares, [100 * point.accuracy for point in calibration.points], "o-", label="agent")
    axes.axhline(100 * calibration.full_accuracy, linestyle=":", color="grey", label="all groups")
    _label(axes, f"{calibration.data}, {calibration.samples} images")
    prices = axes.twinx()
    prices.plot(shares, [point.penalty for point in calibration.points], ".--", color="tab:red")
    prices.set_yscale("symlog", linthresh=0.005)
    prices.set_ylabel("penalty (red)")
    return _png(figure)


def baselines_png(points: Sequence[BaselinePoint], title: str) -> bytes:
    """All methods of a comparison, accuracy over the share of the MACs.

    Raises:
        MissingRuntimeError: matplotlib is not installed.
    """
    figure = _figure()
    axes = figure.subplots()
    for method in dict.fromkeys(point.method for point in points):
        own = sorted((100 * p.macs_share, 100 * p.accuracy) for p in points if p.method == method)
        style = "o-" if method == AGENT else "s-" if method == FIXED else ".--"
        axes.plot(*zip(*own, strict=True), style, label=method)
    _label(axes, title)
    return _png(figure)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingRuntimeError(f"plots need matplotlib ({err}); pip install rnp-deploy[train]") from err
    return Figure(figsize=_INCHES, layout="constrained")


def _label(axes: Any, title: str) -> None:
    axes.set_xlabel("mean MACs, % of the full network")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    # Without the program's version, so that the same points are the same bytes.
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
