"""Journal lines as OpenTelemetry spans: two pure mappers, and the encoding of OTLP.

``generic`` speaks the conventions for generative AI, ``langfuse`` what Langfuse reads. Both take a
decoded line and give a :class:`~caribou.otel.spans.Span`; neither knows where it goes.
"""
