"""`@app.task` turns functions into tasks and their options into the published defaults of their kind."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric.contract.errors import Misuse
from flowfabric.contract.policies import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    KindDefaults,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    TimeoutPolicy,
)
from flowfabric.worker import App


async def test_a_task_is_still_the_function() -> None:
    """Decorated functions are called as before, keep their name, and need nothing running."""
    app = App("t")

    @app.task
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    @app.task(name="doubled")
    async def double(n: int) -> int:
        return 2 * n

    assert add(1, b=2) == 3
    assert await double(4) == 8
    assert add.__name__ == "add"
    assert add.__doc__ == "Add."
    assert list(app.tasks) == ["add", "doubled"]


def test_options_become_the_defaults_of_the_kind() -> None:
    """Every option ends up in what workers publish about the kind."""
    app = App("t")

    @app.task(
        name="work",
        lane="gpu",
        retries=3,
        backoff="exponential",
        retry_on={"rate_limit"},
        timeout="30s",
        deadline=timedelta(hours=1),
        requires={"cuda", "big"},
        priority=10,
        stream="durable",
        policy=ExecutionPolicy(retention_ms=5),
    )
    def work() -> None: ...

    assert work.defaults == KindDefaults(
        kind=work.defaults.kind,
        lane=work.defaults.lane,
        priority=10,
        policy=ExecutionPolicy(
            retry_policy=RetryPolicy(
                max_retries=3, backoff=ExponentialBackoff(), retryable_categories=("rate_limit",)
            ),
            timeout_policy=TimeoutPolicy(attempt_timeout_ms=30_000, execution_deadline_ms=3_600_000),
            routing_requirements=RoutingRequirements(required_capabilities=("big", "cuda")),
            stream_policy=StreamPolicy(durability_mode="durable"),
            retention_ms=5,
        ),
    )
    assert work.lane == "gpu"


def test_a_bare_task_publishes_no_policy() -> None:
    """Without options a kind has no policy of its own: lane default, no retries."""
    app = App("t")

    @app.task
    def work() -> None: ...

    assert work.defaults.policy is None
    assert work.lane == "default"


@pytest.mark.parametrize(
    ("option", "backoff"),
    [
        ("fixed", FixedBackoff()),
        ("exponential", ExponentialBackoff()),
        ("250ms", FixedBackoff(delay_ms=250)),
        (2, FixedBackoff(delay_ms=2_000)),
        (timedelta(minutes=1), FixedBackoff(delay_ms=60_000)),
        (FixedBackoff(delay_ms=7, jitter=True), FixedBackoff(delay_ms=7, jitter=True)),
    ],
)
def test_backoff_is_written_in_several_ways(option: Any, backoff: Any) -> None:
    """A backoff is a word, a wait between tries, or a policy."""
    app = App("t")

    @app.task(retries=1, backoff=option)
    def work() -> None: ...

    assert work.defaults.policy is not None
    assert work.defaults.policy.retry_policy == RetryPolicy(max_retries=1, backoff=backoff)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"name": "has space"}, "kind is 1 to 128"),
        ({"lane": "{x}"}, "lane name"),
        ({"retries": -1}, "max_retries"),
        ({"backoff": "fixed"}, "need retries="),
        ({"retries": 1, "backoff": "soon"}, "backoff="),
        ({"retry": RetryPolicy(), "retries": 1}, "not both"),
        ({"timeout": 0}, "attempt_timeout_ms"),
        ({"timeout": "30 parsecs"}, "timeout="),
        ({"requires": "cuda"}, "set of capabilities"),
        ({"requires": {"a,b"}}, "comma_in_token"),
        ({"priority": 2**40}, "priority"),
        ({"stream": "fast"}, "stream is"),
        ({"max_concurrency": 0}, "max_concurrency"),
        (
            {"requires": {"x"}, "policy": ExecutionPolicy(routing_requirements=RoutingRequirements())},
            "given twice",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], part: str) -> None:
    """An option out of range or contradicting another is refused when the task is defined."""
    app = App("t")
    with pytest.raises(Misuse, match=part):

        @app.task(**options)
        def work() -> None: ...

    assert len(app) == 0


def test_names_are_unique() -> None:
    """Two tasks of one app cannot have one name, also when apps are put together."""
    app, other = App("t"), App("o")

    @app.task(name="work")
    def first() -> None: ...

    with pytest.raises(Misuse, match="already has a task work"):

        @app.task(name="work")
        def second() -> None: ...

    @other.task(name="work")
    def third() -> None: ...

    with pytest.raises(Misuse, match="already has"):
        app.include(other)


def test_apps_are_put_together() -> None:
    """An app includes the tasks of another, once however often it is asked."""
    app, other = App("t"), App("o")

    @other.task
    def work() -> None: ...

    app.include(other)
    app.include(other)
    assert list(app) == [work]
