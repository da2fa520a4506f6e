"""What an operator most likely meant, or did not set himself: names with a typing error, and what Kubernetes puts in."""

import re
from collections.abc import Iterable, Mapping

from svc.settings.settings import Settings, variable

_OTHERS = re.compile(
    r"(?:OTEL|KUBERNETES|ECS|LC|PYTHON|SSH|XDG|GRPC)_|.*_(?:SERVICE_HOST|SERVICE_PORT.*|PORT_[0-9]+_.*)$"
)
"""Families of names that are not ours; Kubernetes' own among them."""


def misspelled(environ: Mapping[str, str], known: Iterable[str] = ()) -> list[str]:
    """A sentence for each variable whose name is one typing error away from one of ours (or of `known`) and is none itself."""
    ours = {variable(field) for field in Settings.model_fields} | set(known)
    found = []
    for name in sorted(set(environ) - ours):
        if len(name) < 6 or _OTHERS.match(name) or kubernetes(environ[name]):
            continue
        meant = next((one for one in sorted(ours) if one not in environ and _one_error(name, one)), None)
        if meant is not None:
            found.append(f"{name} is no setting of this service; did you mean {meant}?")
    return found


def _one_error(held: str, meant: str) -> bool:
    """One letter more, less or other, or two neighbours exchanged."""
    if abs(len(held) - len(meant)) > 1 or held == meant:
        return False
    start = 0
    while start < min(len(held), len(meant)) and held[start] == meant[start]:
        start += 1
    one, other = held[start:], meant[start:]
    exchanged = len(one) == len(other) > 1 and one[:2] == other[1::-1] and one[2:] == other[2:]
    return exchanged or one[1:] == other[1:] or one[1:] == other or one == other[1:]


def kubernetes(value: str) -> bool:
    """Whether a value has the form of what Kubernetes sets for each Service of the namespace (`<SERVICE>_PORT`)."""
    return bool(re.fullmatch(r"(?:tcp|udp|sctp)://[0-9A-Fa-f.:\[\]]+:[0-9]{1,5}", value.strip()))


def service_of(name: str) -> str:
    """The Service for which Kubernetes sets this variable."""
    return name.removesuffix("_PORT").lower().replace("_", "-")
