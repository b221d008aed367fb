-- What people query: each row once (FINAL), step_number null when there is none, and the columns
-- that only delivery needs left out. A row never changes its partition, so partitions are merged
-- apart from each other: that lets a filter on start_time skip whole months.

CREATE OR REPLACE VIEW {database}.spans{on_cluster} AS
SELECT
    trace_id, span_id, parent_span_id, seq,
    run_id, phase, nullIf(step_number, -1) AS step_number, datapoint_id, env_name, model_name,
    kind, name, status, status_message, start_time, end_time, duration_ms,
    turn_index, intra_index, role, content, tool_calls, tool_call_id, tool_name,
    arguments, result, error, requestor, model, provider,
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd,
    grader_name, grader_type, score, reasoning, criteria, passed_count, total_count, prompt,
    data, attributes, structured, late, sanitized, batch_id, ingested_at
FROM {database}.spans_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.traces{on_cluster} AS
SELECT
    trace_id, root_span_id,
    run_id, phase, nullIf(step_number, -1) AS step_number, datapoint_id, env_name, model_name,
    grader_name, status, error_type, error_message, traceback, start_time, end_time, duration_ms,
    turns, messages, tool_calls, tool_errors, input_tokens, output_tokens, cost_usd, usage,
    score, tags, metadata, version
FROM {database}.traces_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.entity_metadata{on_cluster} AS
SELECT entity_type, entity_id, run_id, key, value, value_number
FROM {database}.entity_metadata_rows FINAL;

CREATE OR REPLACE VIEW {database}.trace_tags{on_cluster} AS
SELECT tag, run_id, trace_id
FROM {database}.trace_tags_rows FINAL;

CREATE OR REPLACE VIEW {database}.scores{on_cluster} AS
SELECT
    run_id, grader_name, nullIf(step_number, -1) AS step_number, trace_id, span_id, datapoint_id,
    phase, seq, time, score, reasoning
FROM {database}.scores_rows FINAL;
