"""The border to SQS: whatever is answered, nothing comes out of a call but our own types or a `QueueError`.

`odd.py` holds the odd answers that somebody has met, `calls.py` every call that the program makes, `generated.py` answers that
nobody has thought of. `python -m tests.border --minutes 10` throws generated answers at every call for as long.
"""
