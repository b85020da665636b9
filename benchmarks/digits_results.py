"""Train on the digits over several seeds, and measure what the agent learnt.

    python benchmarks/digits_results.py -o docs/results [--seeds 5] [--jobs 2]

Writes digits.json (every number), PNG files and the tables of docs/results.md to stdout. Each seed
trains one penalty-conditioned network with narrow networks beside it, one network for each of some
fixed penalties, and is judged on the 450 held-out scans, on which the penalty of a budget is calibrated
too. A job takes one thread, so `--jobs 2` is what two cores can do. `--seeds 0` draws plots and tables anew.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from rnp_deploy.datasets import ImageData, load_data
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training import TrainingConfig, train
from rnp_deploy.training.backbones import digits_cnn
from rnp_deploy.training.baselines import NARROW, compare, random_options_at
from rnp_deploy.training.evaluation import Outcome, agent_policy, fixed_policy, mean_macs_share, outcomes

WIDTHS = "4,8,16,16"
SETTINGS: dict[str, Any] = {"label_smoothing": 0.0, "rounds": 10}
BUDGETS = (0.15, 0.18, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIXED_PENALTIES = (0.01, 0.05, 0.2)
MIDDLE_BUDGET = 0.5
DEALS = 32
SHOWN = 12


def run_seed(seed: int) -> dict[str, Any]:
    """Everything measured with one seed; numbers and lists alone."""
    torch.set_num_threads(1)
    data = load_data("digits")
    config = TrainingConfig(seed=seed, **SETTINGS)
    started = time.perf_counter()
    result = train(backbone_of(seed), data, config)
    seconds = time.perf_counter() - started
    compared = compare(result, backbone_of(seed), data, config)
    seconds_with_baselines = time.perf_counter() - started
    network, calibration = result.network, result.calibration
    (full,) = outcomes(network, data.test, [fixed_policy(network, network.full_options(1)[0])])
    report = {
        "seed": seed,
        "seconds": seconds,
        "agent_macs_share": agent_share(network),
        "seconds_with_baselines": seconds_with_baselines,
        "backbone_accuracy": calibration.backbone_accuracy,
        "full_accuracy": calibration.full_accuracy,
        "curve": [(p.penalty, p.macs_share, p.accuracy) for p in calibration.points],
        "narrow": [(p.macs_share, p.accuracy) for p in compared if p.method == NARROW],
        "fixed_options": [(p.macs_share, p.accuracy) for p in compared if p.method == "fixed option"],
        "budgets": [
            at_budget(network, data, budget, calibration.penalty_for(budget), full)
            for budget in BUDGETS
            if budget >= min(point.macs_share for point in calibration.points)
        ],
        "fixed_penalties": [],
    }
    for penalty in FIXED_PENALTIES:
        fixed = train(
            backbone_of(seed),
            data,
            TrainingConfig(**{**vars(config), "penalty": penalty, "penalty_range": None}),
        )
        own = fixed.calibration.at(penalty)
        (conditioned,) = outcomes(network, data.test, [agent_policy(network, penalty)])
        report["fixed_penalties"].append(
            {
                "penalty": penalty,
                "fixed": (own.macs_share, own.accuracy),
                "conditioned": (mean_macs_share(network, conditioned.options), conditioned.accuracy),
                "shifted": shifted_points(fixed.network, data),
            }
        )
    if seed == 0:
        report["images"] = per_image(network, data, calibration.penalty_for(MIDDLE_BUDGET), full)
    return report


def shifted_points(network: RuntimePrunedNetwork, data: ImageData) -> list[tuple[float, float, float]]:
    """Penalty, MACs share and accuracy of a fixed agent whose Q-values are shifted."""
    policies = [agent_policy(network, penalty) for penalty in FIXED_PENALTIES]
    done = outcomes(network, data.test, policies)
    return [
        (p, mean_macs_share(network, o.options), o.accuracy)
        for p, o in zip(FIXED_PENALTIES, done, strict=True)
    ]


def backbone_of(seed: int) -> torch.nn.Module:
    """The first weights, those that rnp-train draws."""
    torch.manual_seed(seed)
    return digits_cnn(widths=WIDTHS)


def agent_share(network: RuntimePrunedNetwork) -> float:
    """The agent's own MACs ÷ the full network's."""
    own = sum(network.agent.macs(t) for t in range(len(network.decisions)))
    return own / int(network.macs(network.full_options(1)))


def at_budget(
    network: RuntimePrunedNetwork, data: ImageData, budget: float, penalty: float, full: Outcome
) -> dict[str, Any]:
    """The agent at the penalty calibrated for a budget, beside random decisions of equal mean MACs."""
    (agent,) = outcomes(network, data.test, [agent_policy(network, penalty)])
    generator = torch.Generator().manual_seed(0)
    count, share = len(data.test), mean_macs_share(network, agent.options)
    random = [random_options_at(network, count, share, generator) for _ in range(DEALS)]
    dealt = [agent.options[torch.randperm(count, generator=generator)] for _ in range(DEALS)]
    done = outcomes(network, data.test, [fixed_policy(network, options) for options in (*random, *dealt)])
    macs = network.macs(agent.options).numpy()
    varied = macs.min() < macs.max()
    rho, p = stats.spearmanr(macs, full.losses.numpy(), alternative="greater") if varied else (0.0, 1.0)
    return {
        "budget": budget,
        "penalty": penalty,
        "macs_share": share,
        "agent": agent.accuracy,
        "random": float(np.mean([each.accuracy for each in done[:DEALS]])),
        "random_macs_share": float(
            np.mean([mean_macs_share(network, each.options) for each in done[:DEALS]])
        ),
        "dealt": float(np.mean([each.accuracy for each in done[DEALS:]])),
        "spearman": (float(rho), float(p)),
        "option_counts": [
            torch.bincount(column, minlength=network.groups + 1)[1:].tolist() for column in agent.options.T
        ],
    }


def per_image(
    network: RuntimePrunedNetwork, data: ImageData, penalty: float, full: Outcome
) -> dict[str, Any]:
    """What each image of the test split got, and how hard it is for the full network."""
    (agent,) = outcomes(network, data.test, [agent_policy(network, penalty)])
    return {
        "penalty": penalty,
        "macs": network.macs(agent.options).tolist(),
        "options": agent.options.tolist(),
        "loss": full.losses.tolist(),
        "label": data.test.labels.tolist(),
    }


def table(reports: list[dict[str, Any]]) -> str:
    """The numbers over seeds, in Markdown."""
    head = (
        "MACs aimed at", "penalty", "MACs, %", "agent", "random decisions", "agent - random", "p",
        "dealt to other images", "narrow network", "agent - narrow", "the same, with the agent's MACs", "Spearman", "p < 0.01",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for budget in BUDGETS:
        rows = [row for report in reports for row in report["budgets"] if row["budget"] == budget]
        if len(rows) < len(reports):
            continue
        values = {name: np.array([row[name] for row in rows]) for name in ("penalty", "macs_share", "agent",
                                                                           "random", "dealt")}  # fmt: skip
        narrow = np.array(
            [narrow_at(report, row["macs_share"]) for row, report in zip(rows, reports, strict=True)]
        )
        beside = np.array(
            [
                narrow_at(report, row["macs_share"] + report["agent_macs_share"])
                for row, report in zip(rows, reports, strict=True)
            ]
        )
        gap = values["agent"] - values["random"]
        rho = np.array([row["spearman"][0] for row in rows])
        cells = [
            f"{budget:.0%}", f"{values['penalty'].mean():.3f}", spread(values["macs_share"]), spread(values["agent"]),
            spread(values["random"]), spread(gap), f"{p_above_zero(gap):.3f}", spread(values["dealt"]), spread(narrow),
            spread(values["agent"] - narrow),
            spread(values["agent"] - beside), f"{rho.mean():.2f} ± {rho.std(ddof=1):.2f}",
            f"{sum(row['spearman'][1] < 0.01 for row in rows)} of {len(rows)}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *sentences(reports), "", *fixed_table(reports)]
    return "\n".join(lines)


def sentences(reports: list[dict[str, Any]]) -> list[str]:
    """What is not in a table."""
    gap = np.array([np.mean([row["agent"] - row["random"] for row in x["budgets"]]) for x in reports])
    low, high = ([report["curve"][i][1] for report in reports] for i in (-1, 0))
    rises = [max(np.diff([share for _, share, _ in report["curve"]])) for report in reports]
    risen = ", ".join(f"{100 * max(rise, 0.0):.2f}" for rise in rises)
    seconds = [", ".join(f"{x[name]:.0f}" for x in reports) for name in ("seconds", "seconds_with_baselines")]
    return [
        f"Mean over all budgets, agent - random: {spread(gap)}, p = {p_above_zero(gap):.4f}.",
        f"The agent's own MACs: {spread([x['agent_macs_share'] for x in reports])} % of the full network's.",
        f"Full network {spread([x['full_accuracy'] for x in reports])} %.",
        f"Plain backbone {spread([x['backbone_accuracy'] for x in reports])} %.",
        f"The curve goes from {spread(low)} to {spread(high)} % of the MACs.",
        f"Its largest rise with the penalty, in points of MACs, seed by seed: {risen}.",
        f"Seconds a seed: {seconds[0]}; with the comparison: {seconds[1]}.",
    ]


def fixed_table(reports: list[dict[str, Any]]) -> list[str]:
    """Agents trained for one penalty beside the conditioned one, and the middle one's Q-values shifted."""
    head = (
        "penalty", "trained for it: MACs, %", "accuracy", "conditioned: MACs, %", "accuracy", "difference",
        f"trained for {FIXED_PENALTIES[1]}, shifted: MACs, %", "accuracy", "conditioned at these MACs",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for i, penalty in enumerate(FIXED_PENALTIES):
        pairs = [report["fixed_penalties"][i] for report in reports]
        cells = [
            spread([pair[kind][j] for pair in pairs]) for kind in ("fixed", "conditioned") for j in (0, 1)
        ]
        cells.append(spread([pair["conditioned"][1] - pair["fixed"][1] for pair in pairs]))
        shifted = [nearest(report["fixed_penalties"][1]["shifted"], penalty) for report in reports]
        same = [
            on_curve(report["curve"], share) for report, (_, share, _) in zip(reports, shifted, strict=True)
        ]
        cells += [spread([point[j] for point in shifted]) for j in (1, 2)] + [spread(same)]
        lines.append(f"| {penalty} | {' | '.join(cells)} |")
    return lines


def p_above_zero(differences: np.ndarray) -> float:
    """One-sided paired t-test over seeds."""
    if len(differences) < 2 or not differences.std():
        return float("nan")
    return float(stats.ttest_1samp(differences, 0, alternative="greater").pvalue)


def narrow_at(report: dict[str, Any], macs_share: float) -> float:
    """Accuracy on the line through the narrow networks, the widest as wide as the full one."""
    shares, accuracies = zip(*sorted(map(tuple, report["narrow"])), strict=True)
    return float(np.interp(macs_share, shares, accuracies))


def nearest(curve: list[Any], penalty: float) -> Any:
    """The point of a curve whose penalty is nearest."""
    return min(curve, key=lambda point: abs(point[0] - penalty))


def on_curve(curve: list[Any], macs_share: float) -> float:
    """The accuracy a curve has at a share of the MACs."""
    points = sorted((share, accuracy) for _, share, accuracy in curve)
    return float(np.interp(macs_share, *zip(*points, strict=True)))


def spread(values: Any) -> str:
    """Mean ± sample standard deviation of shares, in percent."""
    values = 100 * np.asarray(values)
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def draw_plots(reports: list[dict[str, Any]], folder: Path) -> None:
    """Accuracy over MACs; cheapest and dearest images; options per decision."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    shared = [b for b in BUDGETS if all(any(r["budget"] == b for r in x["budgets"]) for x in reports)]
    rows = [[r for x in reports for r in x["budgets"] if r["budget"] == b] for b in shared]
    shares = [100 * np.mean([r["macs_share"] for r in at]) for at in rows]
    for name, marker in (("agent", "o-"), ("random", "s--"), ("dealt", "^:")):
        values = [[100 * r[name] for r in at] for at in rows]
        errors = [np.std(v) for v in values]
        axes.errorbar(shares, [np.mean(v) for v in values], errors, fmt=marker, capsize=3, label=name)
    for name, marker in (("narrow", "x-."), ("fixed_options", "d")):
        points = np.array([report[name] for report in reports]).mean(axis=0) * 100
        axes.plot(points[:, 0], points[:, 1], marker, label=name.replace("_", " "))
    axes.set_xlabel("mean MACs, % of the full network")
    axes.set_ylabel(f"accuracy, % of 450 held-out scans ({len(reports)} seeds)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "digits-accuracy.png", dpi=110)
    draw_images(reports[0]["images"], folder)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    decisions = len(reports[0]["budgets"][0]["option_counts"])
    every = [row for row in reports[0]["budgets"] if row["budget"] in (0.2, 0.4, 0.6, 0.8)]
    for t, axes in enumerate(figure.subplots(1, decisions, sharey=True)):
        for row in every:
            counts = row["option_counts"][t]
            axes.plot(range(1, len(counts) + 1), counts, "o-", label=f"{row['budget']:.0%} of the MACs")
        axes.set_title(f"decision {t}")
        axes.set_xlabel("option")
        axes.set_xticks(range(1, len(counts) + 1))
    axes.legend(fontsize=7)
    figure.savefig(folder / "digits-options.png", dpi=110)


def draw_images(images: dict[str, Any], folder: Path) -> None:
    """The scans that got the fewest and the most MACs: options taken, and L_cls of the full network."""
    scans = load_data("digits").test_scans
    if scans is None:
        raise click.ClickException("the digits have no scans")
    order = np.lexsort((images["loss"], images["macs"]))
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for row, (title, picked) in enumerate((("cheapest", order[:SHOWN]), ("dearest", order[::-1][:SHOWN]))):
        for column, index in enumerate(picked):
            axes = figure.add_subplot(2, SHOWN, row * SHOWN + column + 1)
            axes.imshow(scans[index], cmap="gray")
            taken = "".join(map(str, images["options"][index]))
            axes.set_title(f"{'' if column else title + ' '}{taken}\n{images['loss'][index]:.2g}", fontsize=7)
            axes.axis("off")
    figure.savefig(folder / "digits-images.png", dpi=110)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", type=click.IntRange(min=0), default=5, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True)
def main(output: Path, seeds: int, jobs: int) -> None:
    """Run all seeds and write the results."""
    output.mkdir(parents=True, exist_ok=True)
    if seeds:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            found = []
            for report in pool.imap(run_seed, range(seeds)):
                found.append(report)
                click.echo(f"seed {report['seed']}: {report['seconds_with_baselines']:.0f} s", err=True)
        (output / "digits.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    reports = json.loads((output / "digits.json").read_text(encoding="utf-8"))
    draw_plots(reports, output)
    click.echo(table(reports))


if __name__ == "__main__":
    main()
