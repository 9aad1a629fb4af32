"""Record an experiment: ``python -m cua.experiments NAME``; without a name, list them."""

import argparse
import json

from cua.experiments import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cua.experiments", description=__doc__)
    parser.add_argument("name", nargs="?", choices=EXPERIMENTS, help="experiment to record or to resume")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, (question, _) in EXPERIMENTS.items():
            print(f"{name:20} {question}")
        return
    result = EXPERIMENTS[arguments.name][1]()
    print(json.dumps(result["headline"], indent=1))


if __name__ == "__main__":
    main()
