"""The demo and its baselines: Dice on held-out phantom patients.

The phantom has ACDC's layout, and the run goes from writing the phantom to the report.

python -m benchmarks.demo --out runs/demo --json benchmarks/results/demo.json
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.acdc_cpu import summarize_run
from benchmarks.acdc_scores import STRUCTURES
from benchmarks.result_file import write_result
from uumamba.config import read_config


def main(given: Sequence[str] | None = None) -> None:
    """Run the demo and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="two epochs, as a test")
    options = parser.parse_args(given)
    from uumamba.pipelines.demo import demo

    overrides = ("training.epochs=2",) if options.quick else ()
    begin = time.perf_counter()
    demo(read_config("demo", overrides), out=options.out, say=print)
    minutes = (time.perf_counter() - begin) / 60
    network = summarize_run("UMambaBot, SAM", options.out)
    rows = [{"method": "UMambaBot, SAM"} | {key: network[key] for key in ("mean Dice", *STRUCTURES)}]
    baselines = json.loads((options.out / "baselines.json").read_text(encoding="utf-8"))
    for name, found in baselines.items():
        scores = {structure: round(found[structure], 4) for structure in STRUCTURES}
        rows.append({"method": name, "mean Dice": round(found["dice"], 4)} | scores)
    for row in rows:
        print(row)
    if options.json is not None:
        about = (
            "Mean Dice over the 24 frames of 12 phantom patients held out of 60, on their native grids. The complete "
            f"run with phantom and report took {minutes:.1f} minutes. The baselines were fitted by grid search on the "
            "training cases."
        )
        write_result(options.json, rows, title="The demo", about=about, configs=[("demo", overrides)])


if __name__ == "__main__":
    main()
