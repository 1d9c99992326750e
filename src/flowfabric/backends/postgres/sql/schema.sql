-- The whole schema as it is now, for reading: what all migrations together make of an empty database, without the
-- functions. Nothing applies this file; a test holds it to the migrations. Change a table by a new migration, and here.

CREATE SCHEMA ff;

-- What was applied to the schema, and the functions it has. Both are read by everybody who opens the store.
CREATE TABLE ff.migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at_ms bigint NOT NULL
);

CREATE TABLE ff.function_set (
    id smallint PRIMARY KEY CHECK (id = 1),
    content_hash text NOT NULL,
    version text NOT NULL,
    applied_at_ms bigint NOT NULL
);

-- The whole store. Instants are milliseconds; `vector` numbers the state vectors (flowfabric.backends.vectors). Rows of
-- one execution share its `seq`. `ready` and `agenda` are index entries derived from `execution`, kept apart from it so
-- that its updates touch no index and finished work stays out of what claims read.

CREATE TABLE ff.store (
    id smallint PRIMARY KEY CHECK (id = 1),
    store_id uuid NOT NULL,
    flow_partitions integer NOT NULL,
    budget_partitions integer NOT NULL,
    quota_partitions integer NOT NULL,
    created_at_ms bigint NOT NULL
);

-- Lanes whose state was ever set; the others are active.
CREATE TABLE ff.lane (
    lane text COLLATE "C" PRIMARY KEY,
    state text NOT NULL,
    created_at_ms bigint NOT NULL,
    changed_at_ms bigint NOT NULL
);

-- Combinations of kind and required capabilities seen in a lane by a namespace: what eligible work is indexed by. A lane
-- exists once it has a route, or a row in `lane`. Two transactions that need a route at the same time may both make it.
CREATE TABLE ff.route (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    lane text COLLATE "C" NOT NULL,
    route text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    required text[] COLLATE "C" NOT NULL,
    created_at_ms bigint NOT NULL,
    revision integer UNIQUE -- given when its transaction commits: who knows one knows all with a smaller one
);

-- A route's text may be longer than what an index takes: its hash stands for it.
CREATE INDEX route_place ON ff.route (lane, namespace, hashtextextended(route, 0), id);

CREATE SEQUENCE ff.route_revision AS integer;

-- The body is among the functions.
CREATE FUNCTION ff._settle_route() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

CREATE CONSTRAINT TRIGGER route_settled AFTER INSERT ON ff.route DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION ff._settle_route();

CREATE TABLE ff.kind_default (
    namespace text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    defaults bytea NOT NULL, -- JSON of KindDefaults
    PRIMARY KEY (namespace, kind)
);

CREATE TABLE ff.worker (
    namespace text COLLATE "C" NOT NULL,
    instance text COLLATE "C" NOT NULL,
    worker_id text COLLATE "C" NOT NULL,
    liveness_ttl_ms bigint NOT NULL,
    registered_at_ms bigint NOT NULL,
    last_heartbeat_at_ms bigint NOT NULL,
    expires_at_ms bigint NOT NULL,
    lapsed_at_ms bigint,
    due_at_ms bigint NOT NULL, -- its heartbeat lapses, or it is forgotten
    details bytea NOT NULL, -- JSON of lanes, kinds and capabilities
    PRIMARY KEY (namespace, instance)
);

CREATE INDEX worker_due ON ff.worker (due_at_ms);

CREATE SEQUENCE ff.execution_seq AS bigint CACHE 1;

-- Every execution. The first columns never change. `worker_*`, `attempt_*` and `stream_*` are those of the latest
-- attempt, `lease_*` of the latest lease; `lease_id` is null when the lease was given back.
CREATE TABLE ff.execution (
    seq bigint PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    created_at_ms bigint NOT NULL,
    partition integer NOT NULL,
    route_id integer NOT NULL,
    namespace text COLLATE "C" NOT NULL,
    lane text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    route text COLLATE "C" NOT NULL,
    -- What functions need of the definition.
    max_retries integer, -- null: there is no retry policy
    backoff_kind text,
    backoff_delay_ms bigint,
    backoff_max_ms bigint,
    backoff_multiplier double precision,
    backoff_jitter boolean,
    retryable_categories text[],
    attempt_timeout_ms bigint,
    relative_deadline_ms bigint,
    absolute_deadline_ms bigint,
    max_reclaim_count integer,
    reclaim_grace_ms bigint,
    max_replay_count integer,
    retention_ms bigint,
    frames_ttl_ms bigint,
    frames_maxlen integer,
    -- What changes.
    vector smallint NOT NULL,
    priority integer NOT NULL,
    eligible_since_ms bigint NOT NULL,
    run_started_at_ms bigint NOT NULL,
    last_mutation_at_ms bigint NOT NULL,
    history_count integer NOT NULL DEFAULT 0,
    lease_epoch bigint NOT NULL DEFAULT 0,
    total_attempt_count integer NOT NULL DEFAULT 0,
    retry_count integer NOT NULL DEFAULT 0,
    reclaim_count integer NOT NULL DEFAULT 0,
    replay_count integer NOT NULL DEFAULT 0,
    lease_id uuid,
    claim_id uuid,
    acquired_at_ms bigint,
    renewed_at_ms bigint,
    ttl_ms bigint,
    expires_at_ms bigint,
    worker_id text COLLATE "C",
    worker_instance text COLLATE "C",
    attempt_id uuid,
    attempt_index integer,
    attempt_type text,
    attempt_state text,
    attempt_started_at_ms bigint,
    attempt_epoch bigint,
    attempt_ended_at_ms bigint,
    timeout_at_ms bigint,
    previous_attempt_index integer,
    attempt_failure text[], -- class, category, message
    stream_closed_at_ms bigint,
    stream_closed_reason text,
    started_at_ms bigint,
    completed_at_ms bigint,
    has_result boolean NOT NULL DEFAULT false,
    retention_due_at_ms bigint,
    frames_trim_at_ms bigint,
    stream_due_at_ms bigint,
    not_before_ms bigint,
    deadline_at_ms bigint,
    lost_at_ms bigint,
    lost_reason text,
    reclaim_at_ms bigint,
    reclaim_ready boolean NOT NULL DEFAULT false,
    reclaim_exempt boolean NOT NULL DEFAULT false,
    failure text[], -- class, category, message
    blocking_detail text,
    cancel_reason text,
    cancelled_by text,
    progress_percent double precision,
    progress_message text,
    progress_at_ms bigint,
    grant_purpose text, -- null: there is no grant
    grant_worker_id text,
    grant_worker_instance text,
    granted_at_ms bigint,
    grant_expires_at_ms bigint,
    tags jsonb, -- null: none
    replays jsonb, -- array of ReplayRecord; null: none
    answers text[] -- of the latest attempt, five each: operation, lease id, epoch, digest, answer
) WITH (fillfactor = 60);

-- Executions that can be claimed right now, in the order of claims; `rank` is the negated priority.
CREATE TABLE ff.ready (
    route_id integer NOT NULL,
    rank integer NOT NULL,
    eligible_since_ms bigint NOT NULL,
    id uuid NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (route_id, rank, eligible_since_ms, id)
);

-- The earliest timer of an execution, who holds its lease (`<namespace> <instance>`), and since when it is lost.
CREATE TABLE ff.agenda (
    seq bigint PRIMARY KEY,
    due_at_ms bigint,
    due_kind text,
    holder text COLLATE "C",
    claim_id uuid,
    lost_at_ms bigint,
    id uuid NOT NULL
);

CREATE INDEX agenda_due ON ff.agenda (due_at_ms) WHERE due_at_ms IS NOT NULL;
CREATE INDEX agenda_holder ON ff.agenda (holder, claim_id) WHERE holder IS NOT NULL;
CREATE INDEX agenda_lost ON ff.agenda (lost_at_ms, id) WHERE lost_at_ms IS NOT NULL;

-- Written once. The input comes last, so that reading what is before it does not copy it.
CREATE TABLE ff.definition (
    seq bigint PRIMARY KEY,
    digest text NOT NULL,
    document bytea NOT NULL, -- MessagePack of ExecutionDefinition, its created_at_ms 0
    input_type text NOT NULL,
    input bytea NOT NULL
) WITH (toast_tuple_target = 8160);

ALTER TABLE ff.definition ALTER COLUMN document SET STORAGE EXTERNAL, ALTER COLUMN input SET STORAGE EXTERNAL;

CREATE TABLE ff.result (
    seq bigint PRIMARY KEY,
    content_type text NOT NULL,
    data bytea NOT NULL
) WITH (toast_tuple_target = 8160);

ALTER TABLE ff.result ALTER COLUMN data SET STORAGE EXTERNAL;

-- Attempts that a newer one superseded; the latest is part of its execution.
CREATE TABLE ff.attempt (
    seq bigint NOT NULL,
    attempt_index integer NOT NULL,
    attempt_id uuid NOT NULL,
    attempt_type text NOT NULL,
    attempt_state text NOT NULL,
    attempt_started_at_ms bigint NOT NULL,
    worker_id text NOT NULL,
    worker_instance text NOT NULL,
    attempt_epoch bigint NOT NULL,
    timeout_at_ms bigint,
    previous_attempt_index integer,
    attempt_ended_at_ms bigint,
    attempt_failure text[],
    stream_closed_at_ms bigint,
    stream_closed_reason text,
    answers text[],
    PRIMARY KEY (seq, attempt_index)
);

-- Lease history: entry n of an execution, counted from 1.
CREATE TABLE ff.event (
    seq bigint NOT NULL,
    n integer NOT NULL,
    at_ms bigint NOT NULL,
    name text NOT NULL,
    reason text,
    lease_id uuid,
    lease_epoch bigint NOT NULL,
    attempt_id uuid,
    attempt_index integer,
    worker_instance text,
    outcome text,
    actor text,
    PRIMARY KEY (seq, n)
);

-- The stream of an attempt beside its frames.
CREATE TABLE ff.stream (
    seq bigint NOT NULL,
    attempt_index integer NOT NULL,
    frame_count bigint NOT NULL DEFAULT 0,
    last_sequence bigint NOT NULL DEFAULT 0,
    last_ms bigint NOT NULL DEFAULT 0,
    last_seq bigint NOT NULL DEFAULT 0,
    durable_kept bigint NOT NULL DEFAULT 0,
    summary_kept bigint NOT NULL DEFAULT 0,
    best_effort_kept bigint NOT NULL DEFAULT 0,
    append_rate double precision NOT NULL DEFAULT 0,
    rate_at_ms bigint,
    best_effort_cap bigint NOT NULL,
    expires_at_ms bigint,
    trimmed_ms bigint NOT NULL DEFAULT 0,
    trimmed_seq bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    first_applied_at_ms bigint NOT NULL DEFAULT 0,
    last_updated_at_ms bigint NOT NULL DEFAULT 0,
    cut_ms bigint[] NOT NULL DEFAULT '{0,0,0}', -- of each mode (durable, summary, best_effort): none is left before
    document bytea,
    PRIMARY KEY (seq, attempt_index)
) WITH (fillfactor = 70);

CREATE TABLE ff.frame (
    seq bigint NOT NULL,
    attempt_index integer NOT NULL,
    ms bigint NOT NULL,
    frame_seq bigint NOT NULL,
    sequence bigint NOT NULL,
    ttl_ms bigint,
    summary_version bigint,
    mode text NOT NULL,
    frame_type text NOT NULL,
    content_type text NOT NULL,
    correlation_id text,
    payload bytea NOT NULL,
    PRIMARY KEY (seq, attempt_index, ms, frame_seq)
);

ALTER TABLE ff.frame ALTER COLUMN payload SET STORAGE EXTERNAL;

-- Outlives the execution: the window runs from creation, whatever retention does.
CREATE TABLE ff.idempotency (
    namespace text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    id uuid NOT NULL,
    digest text NOT NULL,
    expires_at_ms bigint NOT NULL,
    PRIMARY KEY (namespace, key)
);

CREATE INDEX idempotency_expiry ON ff.idempotency (expires_at_ms);
