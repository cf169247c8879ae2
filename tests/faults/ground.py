"""Where faults happen: a server, a proxy before it, runs that are taken up at any step, and a verdict on each."""

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

from faults.attempts import Attempt, Outcome
from faults.damage import damage, damage_cache, is_the_damage
from faults.disks import enlarge, small_disk
from faults.ends import End, leftovers, read_end
from faults.harms import Rule
from faults.plans import DAMAGE, NETWORK, STEPS, Fault
from faults.proxy import Proxy
from s3_server import BUCKET, S3Server
from spin_components.store.run import RunStore, open_run

URI, ATTEMPTS = f"s3://{BUCKET}/run", 5
_REMEDIES = (re.compile(r"^(\S+) .*\bdelete it\b"), re.compile(r"delete (\S+) to have its step"))
_ADDRESS = re.compile(rf"s3://{BUCKET}/[\w.-]|/[\w.-]+/[\w.-]+")


class Ground:
    """One S3 server with a proxy; each fault finds it as the undisturbed run had left it at the fault's step.

    Args:
        folder: for everything.
        model: a model folder, which becomes `s3://bucket/base`.
        questions: a data file, which becomes `s3://bucket/questions.jsonl`.

    Attributes:
        end: what the undisturbed run ended with.
        requests: those the undisturbed run sent, each with the step it is taken up at.
        keys: what lay in storage at some step.
    """

    def __init__(self, folder: Path, model: Path, questions: Path) -> None:
        self.folder = folder
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
        """End server and proxy."""
        self.stop()
        self.proxy.close()
        self.server.kill()

    def variables(self, **others: str) -> dict[str, str]:
        """The environment of an attempt."""
        return {
            **self.server.variables,
            "S3_ENDPOINT": self.proxy.endpoint,
            "SPIN_CACHE_DIR": str(self.cache),
            "SPIN_STORAGE_DEADLINE_S": "20",
            **others,
        }

    def begin(self, **variables: str) -> Attempt:
        """Start an attempt at the run, through the proxy."""
        self._attempt = Attempt(tables(), self.variables(**variables), self.folder / "logs")
        return self._attempt

    def stop(self) -> None:
        """End what runs, but for server and proxy."""
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
        """Play the whole run, and keep what is stored and cached as each step begins."""
        self._keep("prepare")
        rules = [
            Rule(pattern, "pause", strike=lambda name=name: self._keep(name))  # type: ignore[misc]
            for name, pattern in STEPS.items()
            if pattern
        ]
        self.proxy.reset(*rules)
        outcome = self.begin().wait()
        assert outcome.kind == "done", outcome.message
        step = "prepare"
        for request in self.proxy.requests:
            step = next((name for name, pattern in STEPS.items() if pattern and re.search(pattern, request)), step)
            self.requests.append((step, request))
        assert {path.name for path in self._snapshots.iterdir()} == STEPS.keys(), "a step was not seen to begin"
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
        found = (path.relative_to(objects).as_posix() for path in sorted(objects.rglob("*")) if path.is_file())
        self.keys[step] = [key for key in found if not key.startswith("events/") and "/." not in f"/{key}"]

    def restore(self, step: str, *, warm: bool) -> None:
        """Have storage, and the cache if it is to be warm, as they were when a step began, or at the `end`."""
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
        """Let a fault happen to a run and the same command follow until it ends; returns the outcome in words.

        Raises:
            AssertionError: it ended otherwise than the undisturbed run, left something behind, ended with an error
                that does not say where, or the fault did not happen.
        """
        self.restore(fault.step, warm=fault.warm)
        with ExitStack() as stack:
            if fault.kind == "full disk":
                stack.enter_context(small_disk(self.cache, fault.size))
            return self._suffer(fault, self._prepare(fault))

    def _suffer(self, fault: Fault, rules: list[Rule]) -> str:

        def play(number: int) -> Outcome:
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

    def check_end(self, what: str, fault: Fault | None = None, allowed: str = "") -> str:
        """Compare what is stored now with what the undisturbed run stored; says so if damage stayed unread.

        Args:
            what: happened, for the message.
            fault: whose own traces do not count.
            allowed: a difference that may be, besides.
        """
        with self.store() as run:
            differences = read_end(run).differences(self.end)
            differences += leftovers(self.cache, "run/")
        left = [line for line in differences if line != allowed and not (fault and is_the_damage(line, fault))]
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
        assert strike or kind in NETWORK or kind == "silence", f"{kind} is no kind of fault"
        rule = Rule(fault.where, kind, skip=fault.skip, times=fault.times, strike=strike)
        self.proxy.reset(rule)
        return [rule]

    def kill_worker(self) -> None:
        """End the attempt that was begun last."""
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
            assert "space" in message, f"the error does not say that the disk is full: {message}"
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


def repeat(play: Callable[[int], Outcome], react: Callable[[Outcome], None], *, what: str) -> list[Outcome]:
    """Play until the run ends well, told the number of the attempt; returns every outcome.

    Args:
        play: one attempt.
        react: told of an attempt that ended with an error, to do what the error says.
        what: happened, for the failure.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < ATTEMPTS:
        outcomes.append(play(len(outcomes)))
        if outcomes[-1].kind == "done":
            return outcomes
        if outcomes[-1].kind == "failed":
            check_clear(outcomes[-1])
            react(outcomes[-1])
    raise AssertionError(f"{what} did not end: {story(outcomes)}\n{outcomes[-1].message}")


def check_clear(outcome: Outcome) -> None:
    """Refuse an error that is none of the project's own, or that names no object."""
    assert outcome.is_clear, f"{outcome.error} is not an error of the project's own:\n{outcome.message}"
    assert _ADDRESS.search(outcome.message), f"{outcome.error} names no object: {outcome.message}"


def to_delete(message: str) -> str:
    """What an error says to delete; empty where it does not."""
    return next((found[1] for remedy in _REMEDIES if (found := remedy.search(message))), "")


def story(outcomes: list[Outcome]) -> list[str]:
    """Every attempt in a word, with what its error said."""
    return [": ".join(filter(None, (outcome.error or outcome.kind, outcome.message))) for outcome in outcomes]


def describe(outcomes: list[Outcome]) -> str:
    """What happened until the same end."""
    kinds = [outcome.kind for outcome in outcomes[:-1]]
    words = [word for word, kind in (("killed", "killed"), ("clear error", "failed")) if kind in kinds]
    return ", ".join([*words, "then the same end"]) if words else "same end"


Tally = Callable[[str, str], None]
"""Told of the group and the outcome of each fault that ended as it may."""
