"""Every error of the project, in one tree.

    LLMTasksError
    ├── ConfigurationError            a setting is missing or contradictory        exit 2
    ├── UsageError                    the caller asked for something impossible    exit 2
    │   ├── UnknownTaskType
    │   ├── InvalidOption
    │   ├── UnknownJob                no job or batch has this id
    │   └── BatchExists               another batch has this id
    ├── DocumentError                 this document cannot be worked on
    │   ├── DocumentNotFound
    │   ├── DocumentSourceFailed      the function of [documents] source did not give it
    │   ├── InvalidDocument           not text, empty, or broken
    │   └── DocumentTooLarge          does not fit any provider's window or limit
    ├── ProviderError                 a model call did not give an answer
    │   ├── RateLimitError            429: come back after `retry_after` seconds
    │   ├── QuotaExhausted            429 of billing: waiting alone does not help
    │   ├── AuthenticationFailed      the key is wrong or may not use this model
    │   ├── RequestRejected           the provider will never accept this request
    │   │   └── ContextWindowExceeded
    │   └── TransientProviderError    may well work next time
    │       ├── ProviderUnavailable   5xx, 529, refused or cut connections
    │       ├── ProviderTimeout       no answer before the deadline
    │       └── InvalidResponse       an answer that is not of the provider's protocol
    ├── OutputError                   the model answered, and the answer is no result
    │   ├── OutputTruncated           cut by the token limit
    │   ├── OutputRefused             the model declined, or a content filter did
    │   ├── OutputInvalid             not of the form the task type promises
    │   └── OutputTooLarge            more than [results] max_output_bytes
    ├── JobError                      the job itself came to an end
    │   ├── JobCancelled
    │   ├── AttemptsExhausted         every allowed attempt failed
    │   ├── DeadlineExceeded          it was not done within its deadline_s
    │   └── WorkerLost                its worker died too often while running it
    ├── StoreUnavailable              the database did not answer
    ├── AdmissionUnavailable          the fleet's Redis did not answer; jobs hold
    └── NotNow                        not a failure: wait, then ask again

Every class can be rebuilt from its message alone, because Celery's JSON result backend carries
an exception as its class name and arguments. Messages never hold document text or secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmtasks.messages import StatedLimits


class LLMTasksError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigurationError(LLMTasksError):
    """A setting is missing, misspelt or contradictory; the message names the key and the file.

    Where a `key` is given the message is that and what it `says` of it; whoever knows where the key stands
    can then put that before them.
    """

    def __init__(self, says: str = "", *, key: str | None = None) -> None:
        super().__init__(says if key is None else f"{key}: {says}")
        self.key = key
        self.says = says


class UsageError(LLMTasksError, ValueError):
    """The caller asked for something that cannot be done."""


class UnknownTaskType(UsageError):
    """No task type has this name."""


class InvalidOption(UsageError):
    """A task option is unknown, missing or has a value that is not allowed."""


class UnknownJob(UsageError):
    """No job and no batch has this id."""

    @classmethod
    def named(cls, target: str) -> UnknownJob:
        """For an id that may be either's."""
        return cls(f"no batch and no job has the id {target!r}")


class BatchExists(UsageError):
    """Another batch has this id, and gets no jobs of others."""


class DocumentError(LLMTasksError):
    """This document cannot be worked on."""


class DocumentNotFound(DocumentError):
    """No document has this id."""


class DocumentSourceFailed(DocumentError):
    """The function of `[documents] source` raised something, or gave what is no text."""


class InvalidDocument(DocumentError):
    """The document is empty, is not text, or its text is broken."""


class DocumentTooLarge(DocumentError):
    """The document does not fit into any eligible provider's context window or limits."""


class ProviderError(LLMTasksError):
    """A model call gave no answer.

    `provider` names the provider of the settings; `maybe_paid` says that the provider may have done
    (and charged) the work although no answer arrived: the outcome is unknown. `retry_after` is the
    provider's own word on when to come back, in seconds; None when it gave none.
    """

    def __init__(
        self,
        message: str = "",
        *,
        provider: str = "",
        maybe_paid: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.maybe_paid = maybe_paid
        self.retry_after = retry_after


class RateLimitError(ProviderError):
    """The provider asked to come back after `retry_after` seconds.

    `limits` are those that it says it enforces; None when it says nothing.
    """

    def __init__(
        self,
        message: str = "",
        *,
        provider: str = "",
        retry_after: float | None = None,
        limits: StatedLimits | None = None,
    ) -> None:
        super().__init__(message, provider=provider, retry_after=retry_after)
        self.limits = limits


class QuotaExhausted(ProviderError):
    """The account's budget or billing quota is used up."""


class AuthenticationFailed(ProviderError):
    """The provider does not accept the API key, or the key may not use this model."""


class RequestRejected(ProviderError):
    """The provider will never accept this request (a 4xx of the caller's making)."""


class ContextWindowExceeded(RequestRejected):
    """The request is longer than the model's context window."""


class TransientProviderError(ProviderError):
    """The call failed for a reason that may be gone next time."""


class ProviderUnavailable(TransientProviderError):
    """The provider is down, overloaded or unreachable."""


class ProviderTimeout(TransientProviderError):
    """The provider did not answer before the call's deadline."""


class InvalidResponse(TransientProviderError):
    """The provider's answer is not of its own protocol (cut JSON, missing fields)."""


class OutputError(LLMTasksError):
    """The model answered, and the answer is not a result."""


class OutputTruncated(OutputError):
    """The answer was cut by the token limit."""


class OutputRefused(OutputError):
    """The model or its content filter declined to answer."""


class OutputInvalid(OutputError):
    """The answer does not have the form that the task type promises."""


class OutputTooLarge(OutputError):
    """The output is larger than the settings allow to be stored."""


class JobError(LLMTasksError):
    """The job came to an end without a result."""


class JobCancelled(JobError):
    """The job was cancelled."""


class AttemptsExhausted(JobError):
    """Every allowed attempt failed; the message holds the last failure."""


class DeadlineExceeded(JobError):
    """The job was not done within the time that it was given."""

    @classmethod
    def after(cls, deadline_s: float, doing: str) -> DeadlineExceeded:
        """For a job that had `deadline_s` seconds; `doing` says where it stood: "it was ..."."""
        return cls(f"not done within {deadline_s:.10g} s: {doing}")


class WorkerLost(JobError):
    """The job's worker died while running it, more often than is allowed."""


class StoreUnavailable(LLMTasksError):
    """The database did not answer, or refused the statement."""


class AdmissionUnavailable(LLMTasksError):
    """The fleet's Redis does not answer, so jobs hold, or go on at a share (`[redis] local_share`)."""


class NotNow(LLMTasksError):
    """Nothing failed: the job has to wait `delay` seconds, then may ask again."""

    def __init__(self, message: str = "", *, delay: float = 0.0) -> None:
        super().__init__(message)
        self.delay = delay


def by_name(name: str) -> type[LLMTasksError]:
    """The class of a stored error type; `JobError` for a name this version does not know."""
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, LLMTasksError):
        return found
    return JobError
