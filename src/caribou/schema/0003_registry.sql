-- What Kestrel registers. Rows come from its API, never from the journal. Of two versions of a row
-- the higher is read. A registration counts down from 2^63 with time and an update up from it, so
-- that of two registrations the first is read, of two updates the last, and an update before any
-- registration however late that comes: who registers what is there already needs to ask nobody.

CREATE TABLE IF NOT EXISTS {database}.projects_rows{on_cluster}
(
    project_id String CODEC(ZSTD(1)),
    name String CODEC(ZSTD(1)),
    created_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    version UInt64 CODEC(ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (project_id);

CREATE TABLE IF NOT EXISTS {database}.runs_rows{on_cluster}
(
    run_id String CODEC(ZSTD(1)),
    project_id String CODEC(ZSTD(1)),
    name String CODEC(ZSTD(1)),
    phase LowCardinality(String) CODEC(ZSTD(1)),
    status LowCardinality(String) CODEC(ZSTD(1)),
    config String CODEC(ZSTD(3)),
    tags Array(String) CODEC(ZSTD(1)),
    created_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    updated_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    finished_at Nullable(DateTime64(6, 'UTC')) CODEC(DoubleDelta, ZSTD(1)),
    archived Bool CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (run_id);

CREATE TABLE IF NOT EXISTS {database}.run_steps_rows{on_cluster}
(
    run_id String CODEC(ZSTD(1)),
    step_number Int64 CODEC(Delta, ZSTD(1)),
    data String CODEC(ZSTD(3)),
    created_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    updated_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    version UInt64 CODEC(ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (run_id, step_number);

CREATE TABLE IF NOT EXISTS {database}.datapoints_rows{on_cluster}
(
    project_id String CODEC(ZSTD(1)),
    datapoint_id String CODEC(ZSTD(1)),
    data String CODEC(ZSTD(3)),
    tags Array(String) CODEC(ZSTD(1)),
    created_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    updated_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    version UInt64 CODEC(ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (project_id, datapoint_id);

CREATE OR REPLACE VIEW {database}.projects{on_cluster} AS
SELECT project_id, name, created_at
FROM {database}.projects_rows FINAL;

CREATE OR REPLACE VIEW {database}.runs{on_cluster} AS
SELECT
    run_id, project_id, name, phase, status, config, tags, created_at, updated_at, finished_at,
    archived
FROM {database}.runs_rows FINAL;

CREATE OR REPLACE VIEW {database}.run_steps{on_cluster} AS
SELECT run_id, step_number, data, created_at, updated_at
FROM {database}.run_steps_rows FINAL;

CREATE OR REPLACE VIEW {database}.datapoints{on_cluster} AS
SELECT project_id, datapoint_id, data, tags, created_at, updated_at
FROM {database}.datapoints_rows FINAL;
