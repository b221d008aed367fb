"""The journal: rows of JSON in memory-mapped files, written at the call and read by couriers later.

``segment``  one file of rows and the length that is committed in it
``stream``   the segments of one table; ``append`` is the hot path
``owner``    the folder of one process: its lock, its description, who is alive
``reader``   what any process may read of any owner's folder
``cursor``   how far a sink has got in an owner's segments
``journal``  the streams of this process, and their upkeep

Nothing in here knows what a line means, and nothing imports a network library.
"""
