"""Which step waits for which, which may begin, and which are passed over: pure decisions over a document's steps.

A step begins when everything that it needs has finished. Beside `needs`, a step comes after those whose `on_error`
names it and after a `switch` that may choose it. A skipped step counts as finished. When a step fails and another one
deals with that (`on_error: <step id>`), the steps between the two are passed over: they rely on what failed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Protocol

from engine.ports import Json
from engine.states import StepState
from engine.step import Step


class Settled(Protocol):
    """What must be known of a finished step."""

    @property
    def status(self) -> StepState: ...

    @property
    def output(self) -> Json: ...


@dataclass(frozen=True, slots=True)
class Graph:
    """Which step waits for which. `needs` has every step, in the document's order."""

    steps: tuple[Step, ...]
    needs: Mapping[str, frozenset[str]]
    handled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """A step that deals with failures, and the steps whose failures those are."""
    switches: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """A step that switches may choose, and those switches."""

    def ready(self, finished: Collection[str], *, begun: Collection[str] = ()) -> list[Step]:
        """Steps whose needs are all in `finished` (succeeded or skipped), without those finished or `begun`.

        In the document's order; independent steps come together, to be run in parallel.
        """
        return [
            step
            for step in self.steps
            if step.id not in finished and step.id not in begun and self.needs[step.id].issubset(finished)
        ]

    def passed_over(self, step: Step, results: Mapping[str, Settled]) -> str | None:
        """Why a ready step is skipped rather than run; None when it runs. `results` has all that it needs."""
        if self.handled and (failed := self._broken(step.id, results)):
            return f"the step {min(failed)} failed, and {self._step(min(failed)).handler} deals with that"
        if step.id in self.handled:
            watched = self.handled[step.id]
            if not any(results[name].status is StepState.FAILED for name in watched):
                return f"nothing failed that it deals with ({', '.join(sorted(watched))})"
        if step.id in self.switches:
            choosers = self.switches[step.id]
            if not any(step.id in chosen(results[name]) for name in choosers):
                return f"the switch {', '.join(sorted(choosers))} did not choose it"
        return None

    def _broken(self, step_id: str, results: Mapping[str, Settled]) -> set[str]:
        """The failed steps before this one whose failure is dealt with neither by it nor before it."""
        before = self.before(step_id)
        failed = {name for name in before if name in results and results[name].status is StepState.FAILED}
        return {
            name
            for name in failed
            if (handler := self._step(name).handler) is not None and handler != step_id and handler not in before
        }

    def _step(self, step_id: str) -> Step:
        return next(step for step in self.steps if step.id == step_id)

    def before(self, step_id: str) -> set[str]:
        """Ids of all steps that are certain to have finished when this one starts."""
        found: set[str] = set()
        waiting = [step_id]
        while waiting:
            new = self.needs.get(waiting.pop(), frozenset()) - found
            found |= new
            waiting.extend(new)
        return found - {step_id}

    def cycle(self) -> list[str] | None:
        """The ids of one cycle, first again at the end; None when there is none."""
        try:
            TopologicalSorter(self.needs).prepare()
        except CycleError as error:
            return list(reversed(error.args[1]))
        return None

    def plan(self) -> tuple[tuple[str, ...], ...]:
        """The steps in waves: each wave needs only earlier ones. For people; the executor does not wait for waves."""
        sorter = TopologicalSorter(self.needs)
        sorter.prepare()
        waves = []
        while sorter.is_active():
            now = set(sorter.get_ready())
            waves.append(tuple(step.id for step in self.steps if step.id in now))
            sorter.done(*now)
        return tuple(waves)


def chosen(switch: Settled) -> Sequence[str]:
    """The steps that a finished switch chose; none when it was skipped or failed."""
    return switch.output["chosen"] if switch.status is StepState.SUCCEEDED else ()


def graph_of(steps: Sequence[Step]) -> Graph:
    """The graph of `steps`: a step without `needs` comes after the one before it."""
    needs: dict[str, frozenset[str]] = {}
    before: tuple[str, ...] = ()
    for step in steps:
        needs[step.id] = frozenset(before if step.needs is None else step.needs)
        before = (step.id,)
    handled = _inverted({step.id: [step.handler] for step in steps if step.handler is not None}, needs)
    switches = _inverted({step.id: step.switch.targets for step in steps if step.switch is not None}, needs)
    for step_id, others in (*handled.items(), *switches.items()):
        needs[step_id] |= others
    return Graph(tuple(steps), needs, handled, switches)


def _inverted(named: Mapping[str, Sequence[str]], known: Collection[str]) -> dict[str, frozenset[str]]:
    """Who is named by whom. Names of no step are left out; the checks of the document tell of them."""
    found: dict[str, frozenset[str]] = {}
    for owner, names in named.items():
        for name in names:
            if name in known:
                found[name] = found.get(name, frozenset()) | {owner}
    return found
