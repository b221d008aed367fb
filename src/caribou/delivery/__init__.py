"""From the journal to the sinks, off the caller's thread.

``io_thread``    the one thread and its event loop
``dispatcher``   what runs in it: couriers, the journal's upkeep, adoption of dead processes' rows
``adoption``     taking over the folders of dead processes, a few at a time
``courier``      one sink and one table: batches, attempts, splitting, acknowledgement
``gate``         when to try again: jittered backoff, and the breaker the couriers of a sink share
``source``       segments to deliver: this process's own, or those adopted from a dead one
``dead_letters`` rows a backend refused for their content
``accounting``   logged = delivered + pending + dropped, per sink
``replay``       delivery of what dead processes left, on demand

No module in here knows any one backend.
"""
