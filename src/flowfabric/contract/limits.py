"""Every bound of the system, in one place.

A loop, queue, page, payload or name anywhere in FlowFabric takes its bound from here. Times are milliseconds,
sizes bytes, unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

# Placement
FLOW_PARTITIONS_DEFAULT: Final = 256
BUDGET_PARTITIONS_DEFAULT: Final = 32
QUOTA_PARTITIONS_DEFAULT: Final = 32
PARTITIONS_MAX: Final = 65_535

# Numbers on the wire stay exact in a double
INTEGER_MAX: Final = 2**53 - 1
TIMESTAMP_MAX_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""
DURATION_MAX_MS: Final = 366 * 86_400_000 * 10

# Names
LANE_LENGTH_MAX: Final = 64
NAME_LENGTH_MAX: Final = 128
IDEMPOTENCY_KEY_BYTES_MAX: Final = 512
REASON_BYTES_MAX: Final = 4_096
MARK_DEAD_REASON_BYTES_MAX: Final = 256
CONTENT_TYPE_LENGTH_MAX: Final = 255
TRACEPARENT_LENGTH_MAX: Final = 55

# Executions
PRIORITY_MIN: Final = 0
PRIORITY_MAX: Final = 9_000
PRIORITY_ACCEPTED_MIN: Final = -(2**31)
PRIORITY_ACCEPTED_MAX: Final = 2**31 - 1
CREATE_MANY_MAX: Final = 1_000
TAGS_MAX: Final = 64
TAG_KEY_BYTES_MAX: Final = 128
TAG_VALUE_BYTES_MAX: Final = 1_024
PAYLOAD_BYTES_MAX: Final = 1024 * 1024
FAILURE_MESSAGE_BYTES_MAX: Final = 16_384
FAILURE_CATEGORY_LENGTH_MAX: Final = 128
RETRYABLE_CATEGORIES_MAX: Final = 64
DEDUP_WINDOW_DEFAULT_MS: Final = 86_400_000
RETENTION_DEFAULT_MS: Final = 86_400_000
MAX_RETRIES_DEFAULT: Final = 3
MAX_RETRIES_MAX: Final = 10_000
RECLAIM_COUNT_DEFAULT: Final = 100
REPLAY_COUNT_DEFAULT: Final = 10
COUNT_MAX: Final = 1_000_000
BACKOFF_DELAY_DEFAULT_MS: Final = 1_000
BACKOFF_DELAY_CAP_DEFAULT_MS: Final = 60_000
BACKOFF_MULTIPLIER_DEFAULT: Final = 2.0
BACKOFF_MULTIPLIER_MAX: Final = 1_000.0

# Capabilities and routes
CAPABILITY_TOKENS_MAX: Final = 256
CAPABILITY_BYTES_MAX: Final = 4_096
ROUTES_PER_LANE_MAX: Final = 1_000

# Leases and claims
LEASE_TTL_DEFAULT_MS: Final = 30_000
LEASE_TTL_MIN_MS: Final = 10
LEASE_TTL_MAX_MS: Final = 86_400_000
GRANT_TTL_DEFAULT_MS: Final = 5_000
GRANT_TTL_MIN_MS: Final = 1
GRANT_TTL_MAX_MS: Final = 60_000
CLAIM_TASKS_MAX: Final = 256
CLAIM_LANES_MAX: Final = 64
CLAIM_KINDS_MAX: Final = 1_024
WAIT_MAX_MS: Final = 30_000
EXPIRED_LEASE_PAGE_DEFAULT: Final = 1_000
EXPIRED_LEASE_PAGE_MAX: Final = 10_000
HISTORY_KEPT: Final = 1_000
ATTEMPT_PAGE_MAX: Final = 1_000

# Streams
FRAME_BYTES_MAX: Final = 65_536
FRAMES_PER_APPEND_MAX: Final = 1_000
FRAME_TYPE_LENGTH_MAX: Final = 64
FRAME_READ_DEFAULT: Final = 100
FRAME_TAIL_DEFAULT: Final = 50
FRAME_READ_MAX: Final = 10_000
STREAM_MAXLEN_DEFAULT: Final = 10_000
STREAM_MAXLEN_MAX: Final = 1_000_000
SUMMARY_FRAMES_KEPT: Final = 64
SUMMARY_DEPTH_MAX: Final = 16
SUMMARY_BYTES_MAX: Final = 1024 * 1024
BEST_EFFORT_TTL_MIN_MS: Final = 1
BEST_EFFORT_TTL_MAX_MS: Final = 3_600_000
BEST_EFFORT_FRAMES_MIN: Final = 64
BEST_EFFORT_FRAMES_MAX: Final = 16_384
BEST_EFFORT_RATE_ALPHA: Final = 0.2
STREAM_OPERATIONS_DEFAULT: Final = 64
"""Concurrent stream reads that a server serves unless told otherwise; waiting tails do not count."""
STREAM_READS_QUEUED_MAX: Final = 1_024
"""Stream reads that may queue for a store's readers in one process."""

# Workers and lanes
LIVENESS_TTL_DEFAULT_MS: Final = 60_000
LIVENESS_TTL_MIN_MS: Final = 100
LIVENESS_TTL_MAX_MS: Final = 86_400_000
WORKER_KEPT_AFTER_LAPSE_MS: Final = 3_600_000
WORKER_KINDS_MAX: Final = 1_024

# Pages
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 1_000
LIST_LOOKED_AT_MAX: Final = 10_000
CURSOR_LENGTH_MAX: Final = 512

# Bodies of requests, and how JSON in them may look
BODY_CONTROL_MAX: Final = 64 * 1024
BODY_APPEND_MAX: Final = 128 * 1024
BODY_SIGNAL_MAX: Final = 256 * 1024
BODY_PAYLOAD_MAX: Final = 1024 * 1024
BODY_BATCH_MAX: Final = 8 * 1024 * 1024
JSON_DEPTH_MAX: Final = 32

# The engine's own rhythm (push drives; these are the safety net)
TIMER_BATCH_MAX: Final = 256
SAFETY_SWEEP_MS: Final = 30_000
TIMER_SLEEP_MAX_MS: Final = 30_000
