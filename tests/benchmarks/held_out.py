"""The held-out questions of a run with every model's answer to them: the README's example is one.

python tests/benchmarks/held_out.py RUN_URI              # all of them, as text
python tests/benchmarks/held_out.py RUN_URI --index 46   # one, as the README's table
"""

from __future__ import annotations

import argparse
import sys

from spin_components.evaluate.judged_answers import questions, sampled
from spin_components.record.history import read_history
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run


def main(run_uri: str, index: int | None) -> None:
    """Print questions with the human's answer, and those of the base model, the warm-up and every finished
    iteration."""
    with open_run(run_uri) as run:
        settings = Settings.model_validate(run.read_json(layout.RUN)["settings"])
        places = {"base": (layout.BASE, 0)}
        if (warmed := read_history(run).warm_up) and warmed.published_epoch is not None:
            places["warm-up"] = (layout.WARM_UP, warmed.published_epoch)
        for t in range(settings.spin.max_iterations):
            if run.exists(layout.checkpoint(t)):
                places[f"iteration {t}"] = (t, int(read_manifest(run, layout.checkpoint(t)).facts["epoch"]))
        answers = {name: questions(run, settings, sampled(run, *place), 0) for name, place in places.items()}
    for asked in zip(*answers.values(), strict=True):
        said = {"human": asked[0].human, **dict(zip(answers, (each.answer for each in asked), strict=True))}
        if index is None:
            lines = [
                f"[{asked[0].index}] {asked[0].prompt.strip()}",
                *(f"{name}: {text}" for name, text in said.items()),
            ]
            sys.stdout.write("\n".join(lines) + "\n\n")
        elif asked[0].index == index:
            rows = [f"| {name} | {' '.join(text.split())} |" for name, text in said.items()]
            sys.stdout.write("\n".join(["| | answer |", "| --- | --- |", *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_uri")
    parser.add_argument("--index", type=int)
    given = parser.parse_args()
    main(given.run_uri, given.index)
