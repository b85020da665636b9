"""Write the corpus: good and bad bundles and engine sets, each with what a reader has to say of it.

    python tests/corpus/make_corpus.py DIRECTORY

writes a folder for each case and ``cases.json``: name, path, code and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import click

from bad_bundles import BAD_BUNDLES
from bad_engine_sets import BAD_ENGINE_SETS
from good_packages import GOOD_BUNDLES, GOOD_ENGINE_SETS
from rnp_deploy.canonical_json import dump_json
from tiny_packages import Recipe, write_bundle, write_engine_set

__all__ = ["Case", "make_corpus"]


class Case(NamedTuple):
    """One package of the corpus.

    Attributes:
        name: Of it alone.
        path: To open.
        code: What a reader has to say: ``"ok"`` or an error's code.
        wrong: What is special about it, in words.
    """

    name: str
    path: Path
    code: str
    wrong: str


def make_corpus(directory: Path) -> list[Case]:
    """Write every case below an empty or new directory."""
    return [
        *_made(directory / "bundles", write_bundle, [*GOOD_BUNDLES, *BAD_BUNDLES]),
        *_made(directory / "engine-sets", write_engine_set, [*GOOD_ENGINE_SETS, *BAD_ENGINE_SETS]),
    ]


def _made(root: Path, write: Callable[[Path], None], recipes: Iterable[Recipe]) -> Iterable[Case]:
    for i, recipe in enumerate(recipes):
        folder = root / f"{i:03}"
        folder.mkdir(parents=True)
        write(folder)
        path = recipe.make(folder)
        yield Case(recipe.name, path if isinstance(path, Path) else folder, recipe.code, recipe.wrong)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=False))
def main(directory: Path) -> None:
    """Write the corpus into DIRECTORY, which must not exist."""
    cases = make_corpus(directory)
    listed = [case._asdict() | {"path": str(case.path)} for case in cases]
    (directory / "cases.json").write_text(dump_json(listed), encoding="utf-8")
    click.echo(f"{len(cases)} cases, {sum(case.code == 'ok' for case in cases)} of them good")


if __name__ == "__main__":
    main()
