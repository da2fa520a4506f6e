"""docs/reference/settings.md, from `svc/settings/settings.py`."""

from docs.generate.markdown import code, head, table
from svc.settings import Settings, load, masked, may_hold, variable


def page() -> str:
    defaults = masked(load({}))
    return head(
        "Settings",
        "svc/settings/settings.py",
        "Environment variables. A duration is a number of seconds (`30`, `0.5`) or has Go's form (`500ms`, `30s`, `1m30s`). "
        "A variable that is set but empty counts as unset, except `AWS_ENDPOINT`. `svc config` prints the effective values, "
        "secrets masked, and where they come from. How the queue's endpoint and region are found, and where AWS credentials come "
        "from: [AWS](../aws.md).",
        "An unusable value ends the command with exit code 2 and one line for each fault: which variable, what it holds, what "
        "it may hold.",
        "What to choose, and why: [Performance and cost](../performance.md#tuning). How a setting is added: "
        "[Contribute](../contribute.md#how-do-i-add).",
        table(
            ("variable", "default", "meaning", "may hold"),
            (
                (
                    code(variable(field)),
                    code(defaults[variable(field)]) or "unset",
                    info.description or "",
                    may_hold(field),
                )
                for field, info in Settings.model_fields.items()
            ),
        ).rstrip(),
    )
