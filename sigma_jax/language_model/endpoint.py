"""A language model behind an OpenAI-compatible URL, as vLLM, Ollama and most providers offer it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from sigma_jax.data.database import optional_import

RETRIES = 4  # of a request, with growing pauses, where the endpoint is busy or cannot be reached
SECONDS = 120.0  # longest wait for a reply
API_KEY = "OPENAI_API_KEY"  # environment variable of the key; local servers need none


class Reply(NamedTuple):
    """An answer of a model, and its tokens."""

    text: str
    prompt_tokens: int
    reply_tokens: int


class ModelStoppedError(ValueError):
    """The model gives no replies. The message is the reason."""


class Endpoint:
    """Asks one model of an endpoint."""

    def __init__(self, url: str, model: str, max_tokens: int, temperature: float):
        """An endpoint at `url`, such as http://localhost:8000/v1.

        Raises:
          ValueError: the package openai is missing.
        """
        openai = optional_import("openai", "run pip install 'sigma_jax[knowledge]'.")
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(API_KEY, "none"),
            timeout=SECONDS,
            max_retries=RETRIES,
        )
        self.name = model
        self._settings: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """The reply to a chat. ModelStoppedError if there is none after all retries."""
        try:
            answer = self._client.chat.completions.create(messages=messages, **self._settings)
            text = answer.choices[0].message.content or ""
        except self._errors as error:
            raise ModelStoppedError(" ".join(str(error).split())[:300]) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ModelStoppedError("the reply is not that of a chat endpoint") from error
        usage = answer.usage
        if usage is None:
            return Reply(text, 0, 0)
        return Reply(text, usage.prompt_tokens, usage.completion_tokens)
