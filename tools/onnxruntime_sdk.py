"""``python -m rnp_deploy.tools.onnxruntime_sdk``: ONNX Runtime's library and headers for the C++ library."""

from __future__ import annotations

from pathlib import Path

import click

from rnp_deploy.engines.debian_package import DEFAULT_SUITE
from rnp_deploy.engines.ort_sdk import lay_out_sdk
from rnp_deploy.tools.command import RnpCommand

__all__ = ["main"]


@click.command("onnxruntime_sdk", cls=RnpCommand)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--include",
    type=click.Path(path_type=Path),
    help="Folder of headers. [default: the system's, or out of Debian's package]",
)
@click.option("--suite", default=DEFAULT_SUITE, show_default=True, help="Debian's release with the package.")
def main(output: Path, include: Path | None, suite: str) -> None:
    """Lay out lib/, of the installed wheel, and include/, for cmake -DONNXRUNTIME_ROOT=OUTPUT.

    Without headers on this system, those of Debian's libonnxruntime-dev are downloaded and unpacked; nothing is
    installed.
    """
    written = lay_out_sdk(output, include=include, suite=suite)
    click.echo(
        f"{output}: {'written' if written else 'there already'}; cmake -DONNXRUNTIME_ROOT={output.absolute()}"
    )


if __name__ == "__main__":
    main()
