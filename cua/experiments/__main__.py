"""Record an experiment: ``python -m cua.experiments NAME``; without a name, list them."""

import argparse
import inspect
import json

from cua.experiments import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cua.experiments", description=__doc__)
    parser.add_argument("name", nargs="?", choices=EXPERIMENTS, help="experiment to record or to resume")
    parser.add_argument("--seeds", type=int, nargs="+", help="record these seeds only, for example one process a core")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, (question, _) in EXPERIMENTS.items():
            print(f"{name:20} {question}")
        return
    run = EXPERIMENTS[arguments.name][1]
    if arguments.seeds is None:
        result = run()
    elif "seeds" in inspect.signature(run).parameters:
        result = run(seeds=tuple(arguments.seeds))
    else:
        parser.error(f"{arguments.name} has one seed; leave --seeds out")
    print(json.dumps(result["headline"], indent=1))


if __name__ == "__main__":
    main()
