"""Record an experiment: ``python -m cua.experiments NAME``; without a name, list them."""

import argparse
import inspect
import json

from cua.experiments import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cua.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to record or to resume, in this order")
    parser.add_argument("--seeds", type=int, nargs="+", help="record these seeds only, for example one process a core")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in EXPERIMENTS]:
        parser.error(f"no experiment {', '.join(unknown)}; there are: {', '.join(EXPERIMENTS)}")
    if not arguments.names:
        for name, (question, _) in EXPERIMENTS.items():
            print(f"{name:20} {question}")
        return
    runs = {name: EXPERIMENTS[name][1] for name in arguments.names}
    single = [name for name, run in runs.items() if "seeds" not in inspect.signature(run).parameters]
    if arguments.seeds is not None and single:
        parser.error(f"{', '.join(single)}: recorded in one piece; leave --seeds out")
    for run in runs.values():
        result = run() if arguments.seeds is None else run(seeds=tuple(arguments.seeds))
        print(json.dumps(result["headline"], indent=1))


if __name__ == "__main__":
    main()
