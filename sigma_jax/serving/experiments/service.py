"""What a tenant's service answers while experiments run: each user by the user's arms.

A user who reads a list counts as exposed only if the list was computed under the user's present
arms. A list of other arms is shown until the worker has computed it again. So all arms, the control
too, count their users from the first list of their own on. After the end of an experiment no list
of an arm stays.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence

from absl import logging

from sigma_jax.serving.api.models import Answer, Ask, Rule
from sigma_jax.serving.api.service import COMPUTED, Filters, Read, TenantService
from sigma_jax.serving.experiments.arms import known_treatment, ranking_options
from sigma_jax.serving.experiments.assignment import (
    Experiment,
    RunningExperiments,
    Treatment,
    check_together,
)
from sigma_jax.serving.experiments.exposures import ExposureLog
from sigma_jax.serving.load import Load
from sigma_jax.serving.stores.base import StoreError

AD_HOC = "instruction"  # list name of answers that are computed at once, in the log of exposures
ASK_AGAIN_SECONDS = 60.0  # between two times that a user's list is computed again
MOST_ASKED = 100_000  # users who are remembered for it


class ArmService:
    """The service of a tenant, and of the exports of arms beside it."""

    def __init__(self, service: TenantService, others: Mapping[str, TenantService] | None = None):
        """Args:
        others: services over the same store with exports of arms, by name.
        """
        self.service, self.others = service, dict(others or {})
        self.running = RunningExperiments(service.store)
        self.exposures = ExposureLog(service.store)
        self._lock = threading.Lock()
        self._asked: collections.OrderedDict[str, float] = collections.OrderedDict()

    def recommendations(
        self, user_id: str, name: str, filters: Filters, is_shown: bool = True
    ) -> Answer:
        """A list of the index under the user's arms; popular items for users without one.

        Args:
          is_shown: whether the user sees the answer, so that it counts as an exposure.

        Raises:
          StoreError, ValueError: as in TenantService.recommendations_of.
        """
        [answer] = self.recommendations_of([Read(user_id, name, filters)], is_shown)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def recommendations_of(
        self, reads: Sequence[Read], is_shown: bool = True
    ) -> list[Answer | Exception]:
        """The answers to reads of the index, whose lists are read together."""
        treatments = [self._treatment(read.user_id) for read in reads]
        groups: dict[str, list[int]] = {}
        for number, treatment in enumerate(treatments):
            groups.setdefault(treatment.export, []).append(number)
        found: dict[int, Answer | Exception] = {}
        for export, numbers in groups.items():
            some = [with_rules(reads[number], treatments[number]) for number in numbers]
            answers = self._engine_service(export).recommendations_of(some)
            found |= zip(numbers, answers, strict=True)
        for number, (read, treatment) in enumerate(zip(reads, treatments, strict=True)):
            answer = found[number]
            if isinstance(answer, Exception) or answer.source != "index":
                continue
            if answer.arms != dict(treatment.arms):
                self._ask_again(read.user_id)
            elif is_shown:
                self.expose(read.name, answer)
        return [found[number] for number in range(len(reads))]

    def compute(self, asks: Sequence[Ask], load: Load = Load()) -> list[Answer | ValueError]:
        """The answers to requests, computed now, each under its user's arms.

        They are no exposures yet: an answer may come too late to be shown.
        """
        treatments = [self._treatment(ask.user_id) for ask in asks]
        # Explaining is work for all requests of a batch, so those who ask for it have their own.
        groups: dict[tuple[str, tuple[tuple[str, str], ...], bool], list[int]] = {}
        for number, (ask, one) in enumerate(zip(asks, treatments, strict=True)):
            settings = tuple((key, str(value)) for key, value in sorted(one.ranking.items()))
            groups.setdefault((one.export, settings, ask.explain), []).append(number)
        found: dict[int, Answer | ValueError] = {}
        began = time.monotonic()
        for numbers in groups.values():
            first = treatments[numbers[0]]
            service = self._engine_service(first.export)
            options = ranking_options(first.ranking, service.engine, COMPUTED)
            some = [asks[number] for number in numbers]
            filters = [
                filters_with_rules(Filters.of(asks[number]), treatments[number])
                for number in numbers
            ]
            left = load.for_requests(numbers, time.monotonic() - began)
            found |= zip(numbers, service.compute(some, filters, options, left), strict=True)
        for number, treatment in enumerate(treatments):
            answer = found[number]
            if isinstance(answer, Answer):
                answer.arms = dict(treatment.arms)
        return [found[number] for number in range(len(asks))]

    def expose(self, name: str, answer: Answer) -> None:
        """Logs that the user of an answer sees its items, in the list `name`."""
        if not answer.arms:
            return
        running = self.running.by_name
        experiments = [running[one] for one in answer.arms if one in running]
        items = [item.item_id for item in answer.items]
        now = self.service.clock()
        self.exposures.add(experiments, answer.arms, answer.user_id, name, items, now)

    def check(self, experiment: Experiment) -> None:
        """ValueError if an arm has settings that cannot be, or another experiment has them too."""
        self.running.forget()  # another process may have started one just now
        check_together(experiment, self.running.by_name.values())
        for arm in experiment.arms:
            if arm.export and arm.export not in self.others:
                known = ", ".join(self.others) or "none"
                raise ValueError(
                    f"arm {arm.name!r} names the export {arm.export!r}; the service has {known}; "
                    f"start it with --arm_exports={arm.export}=FOLDER."
                )
            ranking_options(arm.ranking, self._engine_service(arm.export).engine, COMPUTED)

    def warm(self) -> None:
        """Answers made-up requests of all exports, so that later ones find programs compiled."""
        for service in self.services:
            service.warm()

    @property
    def services(self) -> list[TenantService]:
        """The tenant's own service, and those of the arms' exports."""
        return [self.service, *self.others.values()]

    def _engine_service(self, export: str) -> TenantService:
        return self.others[export] if export else self.service

    def _treatment(self, user_id: str) -> Treatment:
        """The settings of a user; none where an export is missing here."""
        return known_treatment(self.running.treatment(user_id), self.others, "service")

    def _ask_again(self, user_id: str) -> None:
        """Has a user's lists computed again, at most once in ASK_AGAIN_SECONDS."""
        now = time.monotonic()
        with self._lock:
            if now - self._asked.get(user_id, -ASK_AGAIN_SECONDS) < ASK_AGAIN_SECONDS:
                return
            self._asked[user_id] = now
            self._asked.move_to_end(user_id)
            while len(self._asked) > MOST_ASKED:
                self._asked.popitem(last=False)
        try:
            self.service.store.ask_again([user_id])
        except StoreError as error:  # the answer is there all the same
            logging.warning("service: a list stays out of date: %s", error)


def with_rules(read: Read, treatment: Treatment) -> Read:
    """The read with the rules of the user's arms."""
    if not treatment.rules:
        return read
    return dataclasses.replace(read, filters=filters_with_rules(read.filters, treatment))


def filters_with_rules(filters: Filters, treatment: Treatment) -> Filters:
    """The filters with the rules of the user's arms."""
    rules = {name: Rule(**fields) for name, fields in treatment.rules.items()}
    return dataclasses.replace(filters, rules=rules) if rules else filters
