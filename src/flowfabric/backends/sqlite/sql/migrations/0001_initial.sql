-- The whole store. Records are JSON of the contract's structs; the other columns of `execution` are index entries
-- derived from the record by one function, which fsck recomputes. Instants are milliseconds.

CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    clock_ms INTEGER NOT NULL, -- the latest instant stored: time never goes below it
    event_id INTEGER NOT NULL, -- the latest event id given out: never reused
    flow_partitions INTEGER NOT NULL,
    budget_partitions INTEGER NOT NULL,
    quota_partitions INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
);

CREATE TABLE lane (
    lane TEXT PRIMARY KEY,
    record BLOB NOT NULL
) WITHOUT ROWID;

-- Combinations of kind and required capabilities seen in a lane by a namespace: what eligible work is indexed by.
CREATE TABLE route (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    lane TEXT NOT NULL,
    route TEXT NOT NULL,
    kind TEXT NOT NULL,
    required BLOB NOT NULL,
    UNIQUE (lane, route, namespace)
);

CREATE TABLE kind_default (
    namespace TEXT NOT NULL,
    kind TEXT NOT NULL,
    defaults BLOB NOT NULL,
    PRIMARY KEY (namespace, kind)
) WITHOUT ROWID;

CREATE TABLE worker (
    namespace TEXT NOT NULL,
    instance TEXT NOT NULL,
    due_at_ms INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (namespace, instance)
) WITHOUT ROWID;

CREATE INDEX worker_due ON worker (due_at_ms);

CREATE TABLE execution (
    seq INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE,
    partition INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    lane TEXT NOT NULL,
    kind TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    route_id INTEGER NOT NULL,
    public_state TEXT NOT NULL,
    ready_rank INTEGER, -- the negated priority, while it can be claimed
    eligible_since_ms INTEGER NOT NULL,
    due_at_ms INTEGER,
    due_kind TEXT,
    holder TEXT, -- `<namespace> <instance>` of the worker that holds its lease
    claim_id TEXT,
    lost_at_ms INTEGER,
    record BLOB NOT NULL
);

CREATE INDEX execution_ready ON execution (route_id, ready_rank, eligible_since_ms, uuid)
    WHERE ready_rank IS NOT NULL;
CREATE INDEX execution_due ON execution (due_at_ms) WHERE due_at_ms IS NOT NULL;
CREATE INDEX execution_holder ON execution (holder, claim_id) WHERE holder IS NOT NULL;
CREATE INDEX execution_lost ON execution (lost_at_ms, uuid) WHERE lost_at_ms IS NOT NULL;

-- Written once. The input comes last, so that reading the definition does not read the input's pages.
CREATE TABLE definition (
    seq INTEGER PRIMARY KEY,
    definition BLOB NOT NULL,
    input_type TEXT NOT NULL,
    input BLOB NOT NULL
);

CREATE TABLE result (
    seq INTEGER PRIMARY KEY,
    content_type TEXT NOT NULL,
    data BLOB NOT NULL
);

-- Attempts that a newer one superseded; the latest is part of the execution's record.
CREATE TABLE attempt (
    seq INTEGER NOT NULL,
    attempt_index INTEGER NOT NULL,
    attempt_id TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (seq, attempt_index)
) WITHOUT ROWID;

-- Lease history and completions of all executions, in the order of their commits.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL
);

CREATE INDEX event_of_execution ON event (seq, id);

CREATE TABLE stream (
    seq INTEGER NOT NULL,
    attempt_index INTEGER NOT NULL,
    expires_at_ms INTEGER,
    record BLOB NOT NULL,
    PRIMARY KEY (seq, attempt_index)
) WITHOUT ROWID;

CREATE TABLE frame (
    seq INTEGER NOT NULL,
    attempt_index INTEGER NOT NULL,
    ms INTEGER NOT NULL,
    frame_seq INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    mode TEXT NOT NULL,
    frame_type TEXT NOT NULL,
    content_type TEXT NOT NULL,
    correlation_id TEXT,
    ttl_ms INTEGER,
    summary_version INTEGER,
    payload BLOB NOT NULL,
    PRIMARY KEY (seq, attempt_index, ms, frame_seq)
) WITHOUT ROWID;

-- Outlives the execution: the window runs from creation, whatever retention does.
CREATE TABLE idempotency (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    execution_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;

CREATE INDEX idempotency_expiry ON idempotency (expires_at_ms);
