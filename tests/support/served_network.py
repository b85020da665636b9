"""A tiny bundle as one is served: it sees the price, has a calibration, class names and preprocessing."""

from __future__ import annotations

from pathlib import Path

import networks
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.exporters import export_bundle
from rnp_deploy.preprocessing import make_preprocessing
from tiny_training import tiny_network

__all__ = ["export_served"]


def export_served(path: Path, *, calibrated: bool = True) -> None:
    """Write it; decisions vary from image to image and with penalties of -1 to 1."""
    network = networks.undecided(tiny_network("8,8,16,16", groups=4, penalty_range=(-1.0, 1.0)))
    counts = tuple((25, 25, 25, 25) for _ in network.decisions)
    points = tuple(
        CalibrationPoint(penalty=penalty, accuracy=0.5, macs_share=share, option_counts=counts)
        for penalty, share in ((-1.0, 1.0), (0.0, 0.6), (1.0, 0.2))
    )
    export_bundle(
        network,
        path,
        verify=0,
        calibration=Calibration(
            data="none", samples=100, points=points, backbone_accuracy=0.5, full_accuracy=0.5
        )
        if calibrated
        else None,
        preprocessing=make_preprocessing(
            colour="L", size=(16, 16), shorter_side=18, mean=(0.3,), std=(0.32,)
        ),
        classes=tuple(f'class "{index}"' for index in range(10)),
    )
