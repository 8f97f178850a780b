"""Asks all questions, and keeps each reply the moment it arrives.

A stopped run loses nothing: replies lie in a file of JSON lines, by model and question, and the
next run asks only what is missing. A reply that is nonsense is not kept, so it is asked again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from sigma_jax.language_model.endpoint import Endpoint, ModelStoppedError, Reply
from sigma_jax.language_model.questions import Question

FAILURES = 3  # questions in a row without a reply, after which a run stops
NONSENSE = 10  # replies that are nonsense, when there is no other, after which a run stops
MILLION = 1_000_000


class Model(Protocol):
    """A language model."""

    name: str
    batch_size: int  # questions asked at once

    def ask_all(self, chats: Sequence[list[dict[str, str]]]) -> Sequence[Reply | ModelStoppedError]:
        """The replies to at most `batch_size` chats, or why there is none."""


class EndpointChats:
    """An endpoint as a Model: some requests at once, and at most so many a minute."""

    def __init__(self, endpoint: Endpoint, parallel: int, requests_per_minute: float):
        """`requests_per_minute` 0: as many as the endpoint answers."""
        self.name, self.batch_size = endpoint.name, parallel
        self._endpoint = endpoint
        self._pause = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = time.monotonic()

    def ask_all(self, chats: Sequence[list[dict[str, str]]]) -> list[Reply | ModelStoppedError]:
        """The replies of the endpoint."""

        def ask(chat: list[dict[str, str]]) -> Reply | ModelStoppedError:
            try:
                return self._endpoint.ask(chat)
            except ModelStoppedError as error:
                return error

        with ThreadPoolExecutor(max(len(chats), 1)) as pool:
            waiting = []
            for chat in chats:
                time.sleep(max(self._next - time.monotonic(), 0))
                self._next = max(self._next, time.monotonic()) + self._pause
                waiting.append(pool.submit(ask, chat))
            return [future.result() for future in waiting]


@dataclasses.dataclass(frozen=True)
class Prices:
    """The prices of a model, in any currency."""

    prompt: float = 0.0  # of a million tokens of questions
    reply: float = 0.0  # of a million tokens of replies
    most: float = 0.0  # a run stops before it costs more; 0: no limit

    def of(self, reply: Reply) -> float:
        """The cost of one reply."""
        return (reply.prompt_tokens * self.prompt + reply.reply_tokens * self.reply) / MILLION


@dataclasses.dataclass
class Outcome:
    """The rows of all replies, and counts of this run."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    questions: int = 0
    known: int = 0  # answered by an earlier run
    asked: int = 0
    nonsense: int = 0
    failed: int = 0  # in a row
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    stopped: str = ""  # why the run stopped early

    def count(self, reply: Reply, prices: Prices) -> None:
        """Adds the tokens and the cost of a reply."""
        self.asked += 1
        self.prompt_tokens += reply.prompt_tokens
        self.reply_tokens += reply.reply_tokens
        self.cost += prices.of(reply)


def ask_questions(
    questions: Iterable[Question],
    model: Model,
    kept: Path,
    prices: Prices = Prices(),
) -> Outcome:
    """The rows of all replies, of this run and of earlier ones.

    Args:
      kept: the file of replies.

    Raises:
      ValueError: another command is writing to the same file.
    """
    replies, outcome = read_replies(kept), Outcome()
    missing = []
    for question in questions:
        outcome.questions += 1
        reply = replies.get(key_of(model.name, question))
        rows = question.rows(reply) if reply is not None else []
        if rows:
            outcome.known += 1
            outcome.rows += rows
        else:
            missing.append(question)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another command is writing to {kept}; wait for it.") from None
        _end_line(file, kept)
        for start in range(0, len(missing), model.batch_size):
            if outcome.stopped:
                break
            batch = missing[start : start + model.batch_size]
            answers = model.ask_all([question.messages for question in batch])
            for question, reply in zip(batch, answers, strict=True):
                _take(question, reply, model.name, file, outcome, prices)
            file.flush()
            os.fsync(file.fileno())
            done = outcome.known + outcome.asked
            logging.info("knowledge: %d of %d questions answered", done, outcome.questions)
    return outcome


def _take(
    question: Question,
    reply: Reply | ModelStoppedError,
    name: str,
    file: Any,
    outcome: Outcome,
    prices: Prices,
) -> None:
    """Counts a reply, keeps it where it is of use, and notes why the run must stop."""
    if isinstance(reply, ModelStoppedError):
        outcome.failed += 1
        if outcome.failed >= FAILURES:
            outcome.stopped = str(reply)
        return
    outcome.failed = 0
    outcome.count(reply, prices)
    rows = question.rows(reply.text)
    if not rows:
        outcome.nonsense += 1
        if not outcome.rows and outcome.nonsense >= NONSENSE:
            outcome.stopped = f"no reply holds a list of texts; the last one is {reply.text[:80]!r}"
    else:
        line = {"key": key_of(name, question), "model": name, "reply": reply.text}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        outcome.rows += rows
    if prices.most and outcome.cost * (1 + 1 / max(outcome.asked, 1)) > prices.most:
        outcome.stopped = f"the next question may cost more than {prices.most:g}"


def _end_line(file: Any, path: Path) -> None:
    """Ends a last line that a killed run has left half written."""
    if file.tell() and not path.read_bytes().endswith(b"\n"):
        file.write("\n")


def key_of(model: str, question: Question) -> str:
    """The name of a reply: it depends on the model and on all words of the question."""
    content = json.dumps([model, question.messages], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def read_replies(path: Path) -> dict[str, str]:
    """Key -> reply of the file at `path`; lines that are no replies are left out."""
    replies = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                replies[str(entry["key"])] = str(entry["reply"])
            except (ValueError, KeyError, TypeError):
                continue
    return replies
