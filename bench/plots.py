#!/usr/bin/env python3
"""Draws what bench/compare.py has measured.

    bench/plots.py RESULTS.json FOLDER
"""

import json
import pathlib
import sys

OURS, PEERS = ("#1f5fa8", "#5b9bd5"), ("#c55a11", "#7f7f7f", "#a5a5a5")


def caption(machine):
    return f"{machine['processor']}, {machine['processors']} processors, commit {machine['commit']}, {machine['date'][:10]}"


def errors(entries):
    """Distances from the median to the smallest and the largest, as error bars want them."""
    return [[entry["median"] - entry["min"] for entry in entries], [entry["max"] - entry["median"] for entry in entries]]


def draw_throughput(pyplot, machine, server, path):
    """Decode tokens per second against concurrency, the peers on it."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    colours = {True: iter(OURS), False: iter(PEERS)}
    for name, entry in server["contestants"].items():
        points = {int(label.split()[1]): speeds for label, speeds in entry["tokens_per_second"].items() if label != "prefill"}
        ours = name.startswith("ddl_server")
        axes.errorbar(list(points), [speeds["median"] for speeds in points.values()], yerr=errors(points.values()), label=name,
                      marker="o", capsize=3, linestyle="-" if ours else "--", color=next(colours[ours], "black"))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted(points), [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("concurrent sequences")
    axes.set_ylabel("decode tokens per second")
    axes.set_title(f"{server['size']} model, prompts of {server['prompt_tokens']} tokens, {server['new_tokens']} new\n"
                   "ddl_server over gRPC, peers in their own process", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    save(pyplot, figure, machine, path)


def draw_ratios(pyplot, machine, engine, path):
    """Speed of each variant by that of the additive baseline."""
    figure, panels = pyplot.subplots(1, len(engine), figsize=(5.5 * len(engine), 4.5), sharey=True, squeeze=False)
    for axes, (size, result) in zip(panels[0], engine.items()):
        scenarios = result["scenarios"]
        others = [model["variant"] for model in scenarios[0]["models"][1:]]
        width = 0.8 / max(len(others), 1)
        for i, variant in enumerate(others):
            ratios = [scenario["models"][i + 1]["speed_ratio_to_first"] for scenario in scenarios]
            axes.bar([s + (i - (len(others) - 1) / 2) * width for s in range(len(scenarios))],
                     [ratio["median"] for ratio in ratios], width, yerr=errors(ratios), capsize=2, label=variant)
        axes.axhline(1, color="black", linewidth=0.8)
        labels = [f"prefill\n{s['tokens']}" if s["kind"] == "prefill" else f"decode\nbatch {s['batch']}" for s in scenarios]
        axes.set_xticks(range(len(scenarios)), labels)
        axes.set_title(f"{size}, context {next((s['tokens'] for s in scenarios if s['kind'] == 'decode'), '-')}", fontsize=10)
        axes.legend(loc="lower right")
    panels[0][0].set_ylabel("speed / additive baseline (gpt)")
    save(pyplot, figure, machine, path)


def save(pyplot, figure, machine, path):
    figure.text(0.01, 0.01, caption(machine), fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(path)


def draw(results, folder):
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (scripts/install_dependencies.sh bench)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if "server" in results:
        draw_throughput(pyplot, results["machine"], results["server"], folder / "throughput.png")
    if "engine" in results:
        draw_ratios(pyplot, results["machine"], results["engine"], folder / "variants.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
