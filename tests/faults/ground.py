"""Runs with faults in object storage: a server behind a proxy, snapshots at every step, and checks of the results."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.attempts import Attempt, AttemptResult
from faults.damage import damage, damage_cache, is_the_damage
from faults.disks import enlarge, small_disk
from faults.ends import End, leftovers, read_end
from faults.harms import Rule
from faults.plans import DAMAGE, NETWORK, SECOND_EPOCH, STEPS, Fault
from faults.proxy import Proxy
from spin_components.store.base import RunStore
from spin_components.store.open import open_run
from support.s3_server import BUCKET, S3Server

URI, ATTEMPTS = f"s3://{BUCKET}/run", 5
_REMEDIES = (re.compile(r"^(\S+) .*\bdelete it\b"), re.compile(r"delete (\S+) to have its step"))
_ADDRESS = re.compile(rf"s3://{BUCKET}/[\w.-]|/[\w.-]+/[\w.-]+")


class Ground:
    """One S3 server with a proxy, restored to the undisturbed run's state at the fault's step before each fault.

    Args:
        folder: of all files.
        model: a model folder, which becomes `s3://bucket/base`.
        questions: a data file, which becomes `s3://bucket/questions.jsonl`.
        num_epochs: of the run.

    Attributes:
        end: the result of the undisturbed run.
        requests: those of the undisturbed run, each with the step that it belongs to.
        keys: stored keys at the start of each step.
    """

    def __init__(self, folder: Path, model: Path, questions: Path, num_epochs: int = 2) -> None:
        self.folder = folder
        self._tables = tables(spin={"max_epochs": num_epochs})
        self._steps = {name: pattern for name, pattern in STEPS.items() if num_epochs > 1 or name not in SECOND_EPOCH}
        self.server = S3Server(folder / "server")
        self.proxy = Proxy(self.server.port)
        self.cache = folder / "cache"
        self.end = End()
        self.requests: list[tuple[str, str]] = []
        self.keys: dict[str, list[str]] = {}
        self._snapshots = folder / "snapshots"
        self._attempt: Attempt | None = None
        self._restarts: list[threading.Thread] = []
        shutil.copytree(model, self.server.path("base"))
        shutil.copyfile(questions, self.server.path("questions.jsonl"))

    def close(self) -> None:
        """Stop the server and the proxy."""
        self.stop()
        self.proxy.close()
        self.server.kill()

    def variables(self, **others: str) -> dict[str, str]:
        """Environment variables of an attempt."""
        return {
            **self.server.variables,
            "S3_ENDPOINT": self.proxy.endpoint,
            "SPIN_CACHE_DIR": str(self.cache),
            "SPIN_STORAGE_DEADLINE_S": "20",
            **others,
        }

    def begin(self, **variables: str) -> Attempt:
        """Start an attempt at the run, through the proxy."""
        self._attempt = Attempt(self._tables, self.variables(**variables), self.folder / "logs")
        return self._attempt

    def stop(self) -> None:
        """Stop the attempt, and wait for restarts of the server."""
        self.kill_worker()
        while self._restarts:
            self._restarts.pop().join()

    @contextmanager
    def store(self) -> Iterator[RunStore]:
        """The run's storage, without the proxy."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (self.variables() | self.server.variables).items():
                patch.setenv(name, value)
            with open_run(URI) as run:
                yield run

    def play_undisturbed(self) -> None:
        """Run without faults, and save storage and cache at the start of each step."""
        self._keep("prepare")
        rules = [
            Rule(pattern, "pause", strike=lambda name=name: self._keep(name))  # type: ignore[misc]
            for name, pattern in self._steps.items()
            if pattern
        ]
        self.proxy.reset(*rules)
        outcome = self.begin().wait()
        assert outcome.kind == "done", outcome.message
        step = "prepare"
        for request in self.proxy.requests:
            begun = (name for name, pattern in self._steps.items() if pattern and re.search(pattern, request))
            step = next(begun, step)
            self.requests.append((step, request))
        kept = {path.name for path in self._snapshots.iterdir()}
        assert kept == self._steps.keys(), "the start of a step was not detected"
        with self.store() as run:
            self.end = read_end(run)
        self._keep("end")

    def _keep(self, step: str) -> None:
        kept = self._snapshots / step
        if kept.exists():
            return
        shutil.copytree(self.server.folder, kept / "server")
        for name in ("files", "tags"):
            if (self.cache / name).exists():
                shutil.copytree(self.cache / name, kept / "cache" / name)
        objects = kept / "server" / BUCKET / "run"
        paths = (path.relative_to(objects).as_posix() for path in sorted(objects.rglob("*")) if path.is_file())
        self.keys[step] = [key for key in paths if not key.startswith("events/") and "/." not in f"/{key}"]

    def restore(self, step: str, *, warm: bool) -> None:
        """Restore storage, and with `warm` the cache, to their state at the start of a step or at the `end`."""
        self.stop()
        self.proxy.reset()
        kept = self._snapshots / step
        for path in self.server.folder.iterdir():
            shutil.rmtree(path)
        shutil.copytree(kept / "server", self.server.folder, dirs_exist_ok=True)
        shutil.rmtree(self.cache, ignore_errors=True)
        if warm and (kept / "cache").exists():
            shutil.copytree(kept / "cache", self.cache)

    def suffer(self, fault: Fault) -> str:
        """Run with a fault and repeat the command until it succeeds; returns a description of the outcomes.

        Raises:
            AssertionError: the result differs from the undisturbed run's, files are left over, an error does not
                name a location, or the fault did not happen.
        """
        self.restore(fault.step, warm=fault.warm)
        with ExitStack() as stack:
            if fault.kind == "full disk":
                stack.enter_context(small_disk(self.cache, fault.size))
            return self._suffer(fault, self._prepare(fault))

    def _suffer(self, fault: Fault, rules: list[Rule]) -> str:

        def play(number: int) -> AttemptResult:
            attempt = self.begin()
            if fault.kind == "kill worker at a moment" and not number:
                time.sleep(fault.moment_s)
                attempt.kill()
            outcome = attempt.wait()
            self._join_restarts()
            return outcome

        outcomes = repeat(play, lambda outcome: self.obey(outcome.message, fault), what=str(fault))
        unread = self.check_end(f"{fault} ended differently after {story(outcomes)}", fault)
        assert not rules or any(rule.hits for rule in rules), f"{fault} never happened"
        assert fault.kind != "full disk" or len(outcomes) > 1, f"{fault} never happened"
        return describe(outcomes) + unread

    def check_end(self, what: str, fault: Fault | None = None) -> str:
        """Compare the stored result with the undisturbed run's; returns a note if the damage was never read.

        Args:
            what: description for the message.
            fault: its own damage is ignored.
        """
        with self.store() as run:
            differences = read_end(run).differences(self.end)
            differences += leftovers(self.cache, "run/")
        left = [line for line in differences if not (fault and is_the_damage(line, fault))]
        assert not left, "\n  ".join([f"{what}:", *left])
        return ", damage unread" if differences else ""

    def _prepare(self, fault: Fault) -> list[Rule]:
        if fault.kind in DAMAGE:
            with self.store() as run:
                damage(run, fault)
            return []
        if fault.kind == "damage cache":
            damage_cache(self.cache)
            return []
        if fault.kind in ("kill worker at a moment", "full disk"):
            return []
        kind, strike = fault.kind, None
        for victim, kill in (("worker", self.kill_worker), ("server", self._kill_server)):
            if kind.startswith(f"kill {victim} "):
                kind, strike = kind.replace(f"kill {victim}", "strike"), kill
        assert strike or kind in NETWORK or kind == "silence", f"unknown kind of fault: {kind}"
        rule = Rule(fault.where, kind, skip=fault.skip, times=fault.times, strike=strike)
        self.proxy.reset(rule)
        return [rule]

    def kill_worker(self) -> None:
        """Kill the newest attempt."""
        if self._attempt is not None:
            self._attempt.kill()

    def _kill_server(self) -> None:
        self.server.kill()
        restart = threading.Thread(target=self.server.start, name="restart")
        self._restarts.append(restart)
        restart.start()

    def _join_restarts(self) -> None:
        for restart in self._restarts:
            restart.join()

    def obey(self, message: str, fault: Fault) -> None:
        """Do what the error says: free space, delete a manifest, or restore the original file."""
        if fault.kind == "full disk":
            assert "space" in message, f"the error does not name the full disk: {message}"
            enlarge(self.cache)
            return
        with self.store() as run:
            if doomed := to_delete(message):
                key = run.key_of(doomed)
                assert key, f"the error names something outside the run: {message}"
                run.delete(key)
            elif re.search(r"restore the (original|model)", message):
                kept = self._snapshots / fault.step / "server" / BUCKET / "run" / fault.where
                run.write(fault.where, kept.read_bytes())


def tables(uri: str = URI, /, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of a run of one iteration with two epochs of three steps, saved after each; sections override."""
    values: dict[str, dict[str, Any]] = {
        "run": {"uri": uri},
        "model": {"base": f"s3://{BUCKET}/base"},
        "data": {
            "train": f"s3://{BUCKET}/questions.jsonl",
            "validation_size": 8,
            "max_train_records": 12,
            "max_length": 160,
            "max_prompt_length": 96,
        },
        "spin": {"max_iterations": 1, "max_epochs": 2, "ref_policy_kl_penalty": 0.1},
        "generation": {"engine": "transformers", "max_new_tokens": 8},
        "training": {
            "backend": "torch",
            "precision": "float32",
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "warmup": 0,
            "save_interval": 1,
        },
        "hardware": {"device": "cpu", "threads": 1},
    }
    return {name: {**table, **sections.get(name, {})} for name, table in values.items()}


def repeat(
    play: Callable[[int], AttemptResult], react: Callable[[AttemptResult], None], *, what: str
) -> list[AttemptResult]:
    """Run attempts until one succeeds; returns all outcomes.

    Args:
        play: runs one attempt, given its number.
        react: called with the outcome of an attempt that failed.
        what: description for the message.
    """
    outcomes: list[AttemptResult] = []
    while len(outcomes) < ATTEMPTS:
        outcomes.append(play(len(outcomes)))
        if outcomes[-1].kind == "done":
            return outcomes
        if outcomes[-1].kind == "failed":
            check_clear(outcomes[-1])
            react(outcomes[-1])
    raise AssertionError(f"{what} did not end: {story(outcomes)}\n{outcomes[-1].message}")


def check_clear(outcome: AttemptResult) -> None:
    """Check that an error is one of the project's and names an object."""
    assert outcome.is_clear, f"{outcome.error} is not one of the project's exceptions:\n{outcome.message}"
    assert _ADDRESS.search(outcome.message), f"{outcome.error} names no object: {outcome.message}"


def to_delete(message: str) -> str:
    """The object that an error says to delete; empty if none."""
    return next((match[1] for remedy in _REMEDIES if (match := remedy.search(message))), "")


def story(outcomes: list[AttemptResult]) -> list[str]:
    """One line for each attempt, with its error."""
    return [": ".join(filter(None, (outcome.error or outcome.kind, outcome.message))) for outcome in outcomes]


def describe(outcomes: list[AttemptResult]) -> str:
    """Summary of the outcomes."""
    kinds = [outcome.kind for outcome in outcomes[:-1]]
    words = [word for word, kind in (("killed", "killed"), ("clear error", "failed")) if kind in kinds]
    return ", ".join([*words, "then the same end"]) if words else "same end"


Tally = Callable[[str, str], None]
"""Called with the group and the outcome of each fault with an expected outcome."""
