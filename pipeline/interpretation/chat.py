"""What explains and scores: anything that answers a list of chat messages."""

from __future__ import annotations

from typing import Protocol

from pipeline.errors import PipelineError

Message = dict[str, str]


class ChatError(PipelineError):
    """The chat model cannot be reached or loaded, refuses the request, or answers something that is not an answer."""


class ChatModel(Protocol):
    """A chat model. Its answers should depend on the messages alone, so that results do not depend on the order of requests.

    Attributes:
        name: of the model; it is written beside its answers, and results of another name are not taken for its own.
    """

    @property
    def name(self) -> str: ...

    def complete(self, messages: list[Message]) -> str:
        """The answer to messages, each with "role" (system, user or assistant) and "content".

        Raises:
            ChatError: there is no answer.
        """
        ...
