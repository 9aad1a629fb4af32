"""Record experiments: ``python -m cua.experiments NAME ...``; without a name, list them.

An interrupted one resumes.  Start the same command several times, and the processes share the runs.  With ``--again
RUN`` a single recorded run is made once more, in a copy, and the two are compared; nothing recorded changes.
Most need text: WikiText-2, from the hub or a copy.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cua.experiments.record import ADAPTERS, RESULTS, git_commit, load_result
from cua.experiments.registry import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cua.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to record or to resume, in this order")
    parser.add_argument("--again", metavar="RUN", help="of one experiment: make this recorded run again and compare")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in EXPERIMENTS]:
        parser.error(f"no experiment {', '.join(unknown)}; there are: {', '.join(EXPERIMENTS)}")
    if not arguments.names:
        for name, (question, _) in EXPERIMENTS.items():
            print(f"{name:26} {question}")
        return
    if arguments.again is not None:
        if len(arguments.names) != 1:
            parser.error("--again takes a run of one experiment")
        try:
            print(again(arguments.names[0], arguments.again))
        except (KeyError, FileNotFoundError) as error:
            parser.error(error.args[0])
        except subprocess.CalledProcessError:
            parser.error(f"{arguments.names[0]} could not be run here; what it said stands above")
        return
    try:
        git_commit()  # before hours are spent
    except RuntimeError as error:
        parser.error(error.args[0])
    for name in arguments.names:
        _, run = EXPERIMENTS[name]
        print(json.dumps(run()["headline"], indent=1))


def again(name: str, key: str) -> str:
    """Make one run of a complete experiment again, in a copy of what is recorded, and say how the two compare.

    Raises:
        FileNotFoundError: if the experiment is not recorded.
        KeyError: if it has no such run, or others that are missing as well.
    """
    recorded = load_result(name)
    if recorded["status"] != "complete" or key not in recorded["runs"]:
        raise KeyError(f"{name} has no run {key!r} to repeat, or is not complete; runs: {', '.join(recorded['runs'])}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(RESULTS, copy / "results")
        shutil.copytree(ADAPTERS, copy / "adapters")
        shutil.rmtree(copy / "adapters" / name / key, ignore_errors=True)
        file = copy / "results" / f"{name}.json"
        rest = {other: run for other, run in recorded["runs"].items() if other != key}
        file.write_text(json.dumps(recorded | {"runs": rest, "status": "partial", "headline": {}}))
        command = [sys.executable, "-m", "cua.experiments", name]
        subprocess.run(command, env=os.environ | {"CUA_RECORDS": folder}, stdout=sys.stderr, check=True)
        now = json.loads(file.read_text())["runs"][key]
    before = recorded["runs"][key]
    if "perplexity" not in before:
        return f"{key}: recorded {before}\n{key}: now      {now}"
    difference = 100 * (now["perplexity"] / before["perplexity"] - 1)
    return f"{key}: perplexity {before['perplexity']:.4f} recorded, {now['perplexity']:.4f} now, {difference:+.4f} %"


if __name__ == "__main__":
    main()
