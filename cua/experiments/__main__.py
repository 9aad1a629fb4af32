"""Record experiments: ``python -m cua.experiments NAME ...``; without a name, list them.

An interrupted one resumes.  Start the same command several times, and the processes share the runs.
"""

import argparse
import json

from cua.experiments import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cua.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to record or to resume, in this order")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in EXPERIMENTS]:
        parser.error(f"no experiment {', '.join(unknown)}; there are: {', '.join(EXPERIMENTS)}")
    if not arguments.names:
        for name, (question, _) in EXPERIMENTS.items():
            print(f"{name:26} {question}")
        return
    for name in arguments.names:
        _, run = EXPERIMENTS[name]
        print(json.dumps(run()["headline"], indent=1))


if __name__ == "__main__":
    main()
