#!/usr/bin/env python3
"""Draws what the benchmarks have measured.

    bench/plots.py RESULTS.json FOLDER                                                  what bench/compare.py has written
    bench/plots.py --kernels KERNELS.json --engine small=SMALL.json ... FOLDER          cuda_kernels_benchmark, engine_benchmark
    ... --predictions bench/gpu_predictions.json                                        and what was predicted, beside it; a table too
"""

import argparse
import json
import pathlib
import sys

OURS, PEERS = ("#1f5fa8", "#5b9bd5"), ("#c55a11", "#6a8d3a", "#7f7f7f", "#a5a5a5")


def caption(machine):
    return f"{machine['processor']}, {machine['processors']} processors, commit {machine['commit']}, {machine['date'][:10]}"


def errors(entries):
    """Distances from the median to the smallest and the largest, as error bars want them."""
    return [[entry["median"] - entry["min"] for entry in entries], [entry["max"] - entry["median"] for entry in entries]]


def draw_throughput(pyplot, text, server, path):
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
    save(pyplot, figure, text, path)


def scenario_key(scenario):
    return "prefill" if scenario["kind"] == "prefill" else f"decode {scenario['batch']}"


def draw_ratios(pyplot, text, engine, path, predictions):
    """Speed of each variant by that of the additive baseline, and what was predicted of it."""
    figure, panels = pyplot.subplots(1, len(engine), figsize=(5.5 * len(engine), 4.5), sharey=True, squeeze=False)
    for axes, (size, result) in zip(panels[0], engine.items()):
        scenarios = result["scenarios"]
        others = [model["variant"] for model in scenarios[0]["models"][1:]]
        width = 0.8 / max(len(others), 1)
        for i, variant in enumerate(others):
            ratios = [scenario["models"][i + 1]["speed_ratio_to_first"] for scenario in scenarios]
            axes.bar([s + (i - (len(others) - 1) / 2) * width for s in range(len(scenarios))],
                     [ratio["median"] for ratio in ratios], width, yerr=errors(ratios), capsize=2, label=variant)
            for s, scenario in enumerate(scenarios):
                predicted = predictions.get("ratios", {}).get(size, {}).get(scenario_key(scenario), {}).get(variant)
                if predicted is not None:
                    x = s + (i - (len(others) - 1) / 2) * width
                    axes.plot([x - width / 2, x + width / 2], [predicted, predicted], color="black", linewidth=1.5)
        axes.axhline(1, color="black", linewidth=0.8)
        labels = [f"prefill\n{s['tokens']}" if s["kind"] == "prefill" else f"decode\nbatch {s['batch']}" for s in scenarios]
        axes.set_xticks(range(len(scenarios)), labels)
        axes.set_title(f"{size}, context {next((s['tokens'] for s in scenarios if s['kind'] == 'decode'), '-')}", fontsize=10)
        axes.legend(loc="lower right")
    panels[0][0].set_ylabel("speed / additive baseline (gpt)")
    save(pyplot, figure, text, path)


def draw_kernels(pyplot, text, results, path, predictions):
    """What share of a copy's speed each CUDA kernel reaches, by the number of tokens, one panel for each size of model. Dashed: what
    was predicted at 16 384 tokens."""
    lines = {}
    for result in results:
        if "of_copy" in result:
            size, _, case = result["case"].partition(" ")
            lines.setdefault(size, {}).setdefault(f"{result['kernel']} {case}".strip(), {})[result["tokens"]] = result["of_copy"]
    figure, panels = pyplot.subplots(1, len(lines), figsize=(5.5 * len(lines), 4.5), sharey=True, squeeze=False)
    for axes, (size, kernels) in zip(panels[0], lines.items()):
        for name, shares in kernels.items():
            (line,) = axes.plot(list(shares), list(shares.values()), marker="o", label=name)
            predicted = predictions.get("of_copy", {}).get(f"{size} {name}")
            if predicted is not None:
                axes.axhline(predicted, color=line.get_color(), linestyle="--", linewidth=0.8)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens in a call")
        axes.set_title(size, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    panels[0][0].set_ylabel("bytes a second / those of a copy")
    save(pyplot, figure, text, path)


def print_table(engine, predictions):
    """The ratios as Markdown: measured, predicted, and what the paper reports of training."""
    print("| size | step | variant | speed / gpt | predicted | paper |\n|---|---|---|---|---|---|")
    for size, result in engine.items():
        for scenario in result["scenarios"]:
            for model in scenario["models"][1:]:
                variant = model["variant"]
                predicted = predictions.get("ratios", {}).get(size, {}).get(scenario_key(scenario), {}).get(variant, "")
                paper = predictions.get("paper", {}).get(variant, "")
                print(f"| {size} | {scenario_key(scenario)} | {variant} | {model['speed_ratio_to_first']['median']:.2f} | {predicted} | {paper} |")


def save(pyplot, figure, text, path):
    figure.text(0.01, 0.01, text, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(path)


def draw(results, folder, predictions=None):
    predictions = predictions or {}
    if predictions and results.get("engine"):
        print_table(results["engine"], predictions)
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (scripts/install_dependencies.sh bench)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    text = results["gpu"] if "gpu" in results else caption(results["machine"])
    if "server" in results:
        draw_throughput(pyplot, text, results["server"], folder / "throughput.png")
    if results.get("engine"):
        draw_ratios(pyplot, text, results["engine"], folder / "variants.png", predictions)
    if "kernels" in results:
        draw_kernels(pyplot, text, results["kernels"], folder / "kernels.png", predictions)


def of_gpu(kernels, engine):
    """The form that draw() takes, of the files of the two programs that run on a GPU; either may be missing."""
    results = {"engine": {}}
    for entry in engine:
        size, _, path = entry.partition("=")
        results["engine"][size] = json.loads(pathlib.Path(path).read_text())
        results["gpu"] = results["engine"][size]["device"]
    if kernels is not None:
        measured = json.loads(kernels.read_text())
        results |= {"kernels": measured["results"], "gpu": measured["gpu"]}
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=pathlib.Path, help="what bench/compare.py has written")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kernels", type=pathlib.Path, help="what cuda_kernels_benchmark --json has written")
    parser.add_argument("--engine", action="append", default=[], metavar="SIZE=FILE", help="what engine_benchmark --json has written")
    parser.add_argument("--predictions", type=pathlib.Path, help="what was predicted of a GPU (bench/gpu_predictions.json)")
    arguments = parser.parse_intermixed_args()
    predictions = json.loads(arguments.predictions.read_text()) if arguments.predictions else {}
    if (arguments.results is None) == (arguments.kernels is None and not arguments.engine):
        parser.error("either RESULTS.json, or --kernels and --engine")
    if arguments.results is not None:
        draw(json.loads(arguments.results.read_text()), arguments.folder, predictions)
    else:
        draw(of_gpu(arguments.kernels, arguments.engine), arguments.folder, predictions)


if __name__ == "__main__":
    main()
