"""The held-out questions of a run with every model's answer to them: the README's example is one.

python tests/benchmarks/held_out.py RUN_URI
"""

from __future__ import annotations

import sys

from spin_components.evaluate.judged_answers import questions, sampled
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run


def main(run_uri: str) -> None:
    """Print each question, the human's answer, and those of the base model and of every finished iteration."""
    with open_run(run_uri) as run:
        settings = Settings.model_validate(run.read_json(layout.RUN)["settings"])
        places = {"base": (layout.BASE, 0)}
        for t in range(settings.spin.max_iterations):
            if run.exists(layout.checkpoint(t)):
                places[f"iteration {t}"] = (t, int(read_manifest(run, layout.checkpoint(t)).facts["epoch"]))
        answers = {name: questions(run, settings, sampled(run, *place), 0) for name, place in places.items()}
    for asked in zip(*answers.values(), strict=True):
        lines = [asked[0].prompt.strip(), f"human: {asked[0].human}"]
        lines += [f"{name}: {each.answer}" for name, each in zip(answers, asked, strict=True)]
        sys.stdout.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main(sys.argv[1])
