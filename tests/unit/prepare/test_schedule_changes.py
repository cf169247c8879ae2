from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.prepare.schedule_changes import as_begun, record_schedules
from spin_components.prepare.step import prepare
from spin_components.settings.run import ValidationSettings
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest

MakeSettings = Callable[..., Settings]


def inputs_of(settings: Settings) -> dict[str, Any]:
    """Every setting by its name, as `prepare` has them."""
    tables = settings.model_dump(mode="json")
    return {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}


def settings(max_iterations: int, beta: Any, **training: Any) -> Settings:
    return Settings.model_validate(
        {
            "model": {"base": "m"},
            "data": {"train": "d"},
            "spin": {"max_iterations": max_iterations, "ref_policy_kl_penalty": beta},
            "training": training,
        }
    )


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., LocalRun]:
    """Makes a run that was begun with some settings, of whose iterations some have answers."""

    def make(found: Settings, num_iterations: int) -> LocalRun:
        run = LocalRun(tmp_path / "run")
        run.write_json(layout.RUN, {"settings": found.model_dump(mode="json"), "seed": 0})
        manifest = Manifest(step="prepare", inputs=inputs_of(found))
        run.write_json(layout.DATA_MANIFEST, manifest.model_dump(mode="json"))
        for t in range(num_iterations):
            run.write_json(layout.manifest_of(layout.generations(t, 0)), {})
        return run

    return make


def test_a_list_may_grow_and_its_end_may_change(begun: Callable[..., LocalRun]) -> None:
    before = settings(2, [0.1, 0.2])
    run = begun(before, 2)
    for now in (settings(3, [0.1, 0.2, 5.0]), settings(1, [0.1, 0.2]), settings(1, [0.1])):
        name = "spin.ref_policy_kl_penalty"
        assert as_begun(run, inputs_of(now))[name] == inputs_of(before)[name]


def test_a_number_may_become_a_list_that_begins_with_it(begun: Callable[..., LocalRun]) -> None:
    before = settings(3, 0.1, lr=1e-6)
    found = as_begun(begun(before, 1), inputs_of(settings(3, [0.1, 5.0, 5.0], lr=[1e-6, 1e-7, 1e-7])))
    assert (found["spin.ref_policy_kl_penalty"], found["training.lr"]) == (0.1, 1e-6)


@pytest.mark.parametrize("num_iterations", [0, 1, 2])
def test_what_has_begun_may_not_change(begun: Callable[..., LocalRun], num_iterations: int) -> None:
    run = begun(settings(3, [0.1, 0.2, 0.3]), num_iterations)
    name = "spin.ref_policy_kl_penalty"
    for changed in ([0.5, 0.2, 0.3], [0.1, 0.5, 0.3][: num_iterations or 1] + [9.0] * 3):
        found = as_begun(run, inputs_of(settings(3, changed)))[name]
        fixed = max(num_iterations, 1)
        assert (found == changed) == (changed[:fixed] != [0.1, 0.2, 0.3][:fixed])


def test_settings_that_are_no_schedules_stay_as_given(begun: Callable[..., LocalRun]) -> None:
    found = as_begun(begun(settings(3, 0.1), 1), inputs_of(settings(3, 0.1, weight_decay=0.5)))
    assert found["training.weight_decay"] == 0.5


def test_a_setting_that_is_newer_than_the_run_is_no_input_of_it_by_default(begun: Callable[..., LocalRun]) -> None:
    before = settings(3, 0.1)
    run = begun(before, 1)
    older = {name: value for name, value in inputs_of(before).items() if name != "data.long_prompts"}
    manifest = Manifest(step="prepare", inputs=older)
    run.write_json(layout.DATA_MANIFEST, manifest.model_dump(mode="json"))
    assert as_begun(run, inputs_of(before)) == older
    changed = {**inputs_of(before), "data.long_prompts": "refuse"}
    assert as_begun(run, changed) == changed


def test_a_run_that_has_not_begun_has_nothing_to_keep(tmp_path: Path) -> None:
    inputs = inputs_of(settings(1, 0.1))
    assert as_begun(LocalRun(tmp_path), inputs) == inputs


def test_a_list_too_short_for_the_iterations_asked_for_at_run_time_is_refused(tmp_path: Path) -> None:
    values = settings(2, [0.1, 0.2]).model_dump(mode="json")
    for section, name in (("spin", "max_epochs"), ("generation", "temperature"), ("training", "lr")):
        changed = {**values, "spin": {**values["spin"], "max_iterations": 3, "ref_policy_kl_penalty": 0.1}}
        changed[section] = {**changed[section], name: [1, 1]}
        with pytest.raises(ConfigError, match=rf"{name} has 2 entries for 3 iterations; give one number, or one per"):
            prepare(str(tmp_path), changed, {"max_iterations": 4, "max_epochs": [1] * 4, "shards": 1, "nodes": 1})
    assert not list(tmp_path.iterdir())


def test_the_record_takes_over_schedules_and_nothing_else(begun: Callable[..., LocalRun]) -> None:
    run = begun(settings(2, [0.1, 0.2]), 2)
    record_schedules(run, settings(3, [0.1, 0.2, 5.0], weight_decay=0.5))
    record = run.read_json(layout.RUN)
    assert record["seed"] == 0
    found = Settings.model_validate(record["settings"])
    assert (found.spin.max_iterations, found.spin.beta(2), found.training.weight_decay) == (3, 5.0, 0.0)


def test_the_record_takes_over_the_rules_by_which_iterations_are_judged(begun: Callable[..., LocalRun]) -> None:
    before = settings(2, 0.1)
    run, rules = begun(before, 1), SelectionSettings(patience=5, on_regression="roll_back")
    record_schedules(run, before.model_copy(update={"selection": rules}))
    assert Settings.model_validate(run.read_json(layout.RUN)["settings"]).selection == rules


def test_the_record_is_left_alone_where_nothing_changed(begun: Callable[..., LocalRun]) -> None:
    same = settings(2, [0.1, 0.2])
    run = begun(same, 2)
    written = run.path(layout.RUN).stat().st_mtime_ns
    record_schedules(run, same)
    assert run.path(layout.RUN).stat().st_mtime_ns == written


def test_a_run_keeps_the_default_that_it_began_with(begun: Callable[..., LocalRun]) -> None:
    name = "validation.num_samples"
    former = settings(3, 0.1).model_copy(update={"validation": ValidationSettings(num_samples=32)})
    run = begun(former, 1)
    assert as_begun(run, inputs_of(settings(3, 0.1)))[name] == 32
    changed = settings(3, 0.1).model_copy(update={"validation": ValidationSettings(num_samples=16)})
    assert as_begun(run, inputs_of(changed))[name] == 16  # which is refused
