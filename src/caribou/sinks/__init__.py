"""Where rows go: one module per backend, each a :class:`~caribou.sinks.base.Sink`."""
