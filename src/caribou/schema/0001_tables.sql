-- The tables that are written to. Every row has a natural key (ORDER BY), so a batch that is sent
-- twice is stored once as read. Partition and key columns never change after a row's first write.
-- Columns are one a line, lower-case, then type, default and codec: schema/tables.py reads them here.
-- Text left out of a line is its column's default. step_number -1 means none (a key may not be null).

CREATE TABLE IF NOT EXISTS {database}.spans_rows{on_cluster}
(
    run_id LowCardinality(String) CODEC(ZSTD(1)),
    trace_id String CODEC(ZSTD(1)),
    seq Int64 CODEC(Delta, ZSTD(1)),
    span_id String CODEC(ZSTD(1)),
    parent_span_id String CODEC(ZSTD(1)),
    phase LowCardinality(String) CODEC(ZSTD(1)),
    step_number Int64 DEFAULT -1 CODEC(ZSTD(1)),
    datapoint_id String CODEC(ZSTD(1)),
    env_name LowCardinality(String) CODEC(ZSTD(1)),
    model_name LowCardinality(String) CODEC(ZSTD(1)),
    kind LowCardinality(String) CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    status LowCardinality(String) CODEC(ZSTD(1)),
    status_message String CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    end_time Nullable(DateTime64(9, 'UTC')) CODEC(DoubleDelta, ZSTD(1)),
    duration_ms Nullable(Float64) CODEC(ZSTD(1)),
    turn_index Int64 CODEC(Delta, ZSTD(1)),
    intra_index Int64 CODEC(Delta, ZSTD(1)),
    role LowCardinality(String) CODEC(ZSTD(1)),
    content Nullable(String) CODEC(ZSTD(3)),
    tool_calls String CODEC(ZSTD(3)),
    tool_call_id String CODEC(ZSTD(1)),
    tool_name LowCardinality(String) CODEC(ZSTD(1)),
    arguments String CODEC(ZSTD(3)),
    result Nullable(String) CODEC(ZSTD(3)),
    error String CODEC(ZSTD(1)),
    requestor LowCardinality(String) CODEC(ZSTD(1)),
    model LowCardinality(String) CODEC(ZSTD(1)),
    provider LowCardinality(String) CODEC(ZSTD(1)),
    input_tokens Nullable(Int64) CODEC(ZSTD(1)),
    output_tokens Nullable(Int64) CODEC(ZSTD(1)),
    cache_read_tokens Nullable(Int64) CODEC(ZSTD(1)),
    cache_write_tokens Nullable(Int64) CODEC(ZSTD(1)),
    reasoning_tokens Nullable(Int64) CODEC(ZSTD(1)),
    cost_usd Nullable(Float64) CODEC(ZSTD(1)),
    grader_name LowCardinality(String) CODEC(ZSTD(1)),
    grader_type LowCardinality(String) CODEC(ZSTD(1)),
    score Nullable(Float64) CODEC(ZSTD(1)),
    reasoning String CODEC(ZSTD(3)),
    criteria String CODEC(ZSTD(3)),
    passed_count Nullable(Int64) CODEC(ZSTD(1)),
    total_count Nullable(Int64) CODEC(ZSTD(1)),
    prompt String CODEC(ZSTD(3)),
    data String CODEC(ZSTD(3)),
    attributes Map(String, String) CODEC(ZSTD(1)),
    structured Array(LowCardinality(String)) CODEC(ZSTD(1)),
    late Bool CODEC(ZSTD(1)),
    sanitized LowCardinality(String) CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    batch_id String CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_ingested ingested_at TYPE minmax GRANULARITY 1,
    INDEX content_tokens lower(ifNull(content, '')) TYPE {text_index}
)
ENGINE = {replicated}ReplacingMergeTree(version)
PARTITION BY toYYYYMM(start_time)
ORDER BY (run_id, trace_id, seq, span_id)
-- A month that nothing is added to any more becomes one part, which FINAL reads as it is.
SETTINGS min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

CREATE TABLE IF NOT EXISTS {database}.traces_rows{on_cluster}
(
    run_id LowCardinality(String) CODEC(ZSTD(1)),
    step_number Int64 DEFAULT -1 CODEC(ZSTD(1)),
    trace_id String CODEC(ZSTD(1)),
    root_span_id String CODEC(ZSTD(1)),
    phase LowCardinality(String) CODEC(ZSTD(1)),
    datapoint_id String CODEC(ZSTD(1)),
    env_name LowCardinality(String) CODEC(ZSTD(1)),
    model_name LowCardinality(String) CODEC(ZSTD(1)),
    grader_name LowCardinality(String) CODEC(ZSTD(1)),
    status LowCardinality(String) CODEC(ZSTD(1)),
    error_type LowCardinality(String) CODEC(ZSTD(1)),
    error_message String CODEC(ZSTD(1)),
    traceback String CODEC(ZSTD(3)),
    start_time DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    end_time Nullable(DateTime64(9, 'UTC')) CODEC(DoubleDelta, ZSTD(1)),
    duration_ms Nullable(Float64) CODEC(ZSTD(1)),
    turns Int64 CODEC(ZSTD(1)),
    messages Int64 CODEC(ZSTD(1)),
    tool_calls Int64 CODEC(ZSTD(1)),
    tool_errors Int64 CODEC(ZSTD(1)),
    input_tokens Int64 CODEC(ZSTD(1)),
    output_tokens Int64 CODEC(ZSTD(1)),
    cost_usd Float64 CODEC(ZSTD(1)),
    usage Map(LowCardinality(String), Map(LowCardinality(String), Float64)) CODEC(ZSTD(1)),
    score Nullable(Float64) CODEC(ZSTD(1)),
    tags Array(String) CODEC(ZSTD(1)),
    metadata Map(String, String) CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    batch_id String CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {replicated}ReplacingMergeTree(version)
PARTITION BY toYYYYMM(start_time)
ORDER BY (run_id, step_number, trace_id, root_span_id)
-- A page of traces is rows from all over the table: small pieces make it a quarter of the reading.
SETTINGS index_granularity = 512, min_compress_block_size = 8192, max_compress_block_size = 65536,
    min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

CREATE TABLE IF NOT EXISTS {database}.entity_metadata_rows{on_cluster}
(
    entity_type LowCardinality(String) CODEC(ZSTD(1)),
    key LowCardinality(String) CODEC(ZSTD(1)),
    run_id LowCardinality(String) CODEC(ZSTD(1)),
    entity_id String CODEC(ZSTD(1)),
    value String CODEC(ZSTD(1)),
    value_number Nullable(Float64) CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    batch_id String CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (entity_type, key, run_id, entity_id);

CREATE TABLE IF NOT EXISTS {database}.trace_tags_rows{on_cluster}
(
    tag LowCardinality(String) CODEC(ZSTD(1)),
    run_id LowCardinality(String) CODEC(ZSTD(1)),
    trace_id String CODEC(ZSTD(1)),
    batch_id String CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {replicated}ReplacingMergeTree
ORDER BY (tag, run_id, trace_id);

CREATE TABLE IF NOT EXISTS {database}.scores_rows{on_cluster}
(
    run_id LowCardinality(String) CODEC(ZSTD(1)),
    grader_name LowCardinality(String) CODEC(ZSTD(1)),
    step_number Int64 DEFAULT -1 CODEC(ZSTD(1)),
    trace_id String CODEC(ZSTD(1)),
    span_id String CODEC(ZSTD(1)),
    datapoint_id String CODEC(ZSTD(1)),
    phase LowCardinality(String) CODEC(ZSTD(1)),
    seq Int64 CODEC(Delta, ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    score Nullable(Float64) CODEC(ZSTD(1)),
    reasoning String CODEC(ZSTD(3)),
    batch_id String CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {replicated}ReplacingMergeTree
ORDER BY (run_id, grader_name, step_number, trace_id, span_id);
