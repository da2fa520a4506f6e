"""Every setting of the service: its variable, default, unit, range and one sentence about it.

Lives here: the list (`settings.py`), the forms of values (`values.py`), reading them from the environment's variables with all
faults at once (`loading.py`), what follows where the place of the queue is not set (`resolution.py`, `queue_address.py`), what
was most likely meant (`suspicions.py`), and how they, and other texts from outside, are shown (`shown.py`).
Never here: files (but for a look whether one that a setting names can be read), the network, `os.environ`; what a setting does.
Begin reading at `settings.py`.
"""

from svc.settings.loading import BadSettings, load, origins
from svc.settings.queue_address import QueueAddress, is_aws, partition_of, queue_address
from svc.settings.resolution import Profile
from svc.settings.settings import Settings, is_secret, may_hold, variable
from svc.settings.shown import masked, printable
from svc.settings.suspicions import misspelled
from svc.settings.values import Endpoint, seconds

__all__ = [
    "BadSettings", "Endpoint", "Profile", "QueueAddress", "Settings", "is_aws", "is_secret", "load", "masked", "may_hold",
    "misspelled",    "origins", "partition_of", "printable", "queue_address", "seconds", "variable",
]  # fmt: skip
