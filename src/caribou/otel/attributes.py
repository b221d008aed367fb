"""Names of attributes, in this one place.

``gen_ai.*``, ``error.*``, ``exception.*`` and ``service.*`` are pinned to version 1.41.0 of the
semantic conventions of OpenTelemetry, https://opentelemetry.io/docs/specs/semconv/gen-ai/. What has
no name there stands under ``caribou.``. ``langfuse.*`` is the public reference of Langfuse,
https://langfuse.com/integrations/native/opentelemetry#property-mapping.
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

OPERATION_NAME: Final = "gen_ai.operation.name"
CHAT: Final = "chat"
INVOKE_AGENT: Final = "invoke_agent"
EXECUTE_TOOL: Final = "execute_tool"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
# Replaced by the provider's name in version 1.37; backends still look for it.
SYSTEM: Final = "gen_ai.system"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
EVALUATION_RESULT: Final = "gen_ai.evaluation.result"
EVALUATION_NAME: Final = "gen_ai.evaluation.name"
EVALUATION_SCORE: Final = "gen_ai.evaluation.score.value"
EVALUATION_EXPLANATION: Final = "gen_ai.evaluation.explanation"

ERROR_TYPE: Final = "error.type"
ERROR_OTHER: Final = "_OTHER"
EXCEPTION: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

SERVICE_NAME: Final = "service.name"
# What the specification asks for where nobody gave the service a name.
UNKNOWN_SERVICE: Final = "unknown_service:python"
SDK_NAME: Final = "telemetry.sdk.name"
SDK_LANGUAGE: Final = "telemetry.sdk.language"
SDK_VERSION: Final = "telemetry.sdk.version"

CARIBOU: Final = "caribou."
COST_USD: Final = "caribou.usage.cost_usd"
METADATA: Final = "caribou.metadata."
ATTRIBUTES: Final = "caribou.attributes"
ORIGINAL_BYTES: Final = "caribou.original_bytes."

USER_ID: Final = "user.id"
SESSION_ID: Final = "session.id"
ENVIRONMENT: Final = "langfuse.environment"
TRACE_NAME: Final = "langfuse.trace.name"
TRACE_TAGS: Final = "langfuse.trace.tags"
TRACE_METADATA: Final = "langfuse.trace.metadata."
OBSERVATION_TYPE: Final = "langfuse.observation.type"
OBSERVATION_INPUT: Final = "langfuse.observation.input"
OBSERVATION_OUTPUT: Final = "langfuse.observation.output"
OBSERVATION_LEVEL: Final = "langfuse.observation.level"
OBSERVATION_STATUS_MESSAGE: Final = "langfuse.observation.status_message"
OBSERVATION_MODEL: Final = "langfuse.observation.model.name"
OBSERVATION_USAGE: Final = "langfuse.observation.usage_details"
OBSERVATION_COST: Final = "langfuse.observation.cost_details"
OBSERVATION_METADATA: Final = "langfuse.observation.metadata."
EXPERIMENT_ID: Final = "langfuse.experiment.id"
EXPERIMENT_NAME: Final = "langfuse.experiment.name"
EXPERIMENT_DATASET_ID: Final = "langfuse.experiment.dataset.id"
EXPERIMENT_ITEM_ID: Final = "langfuse.experiment.item.id"
EXPERIMENT_ITEM_ROOT: Final = "langfuse.experiment.item.root_observation_id"
