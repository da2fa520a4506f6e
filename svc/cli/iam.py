"""`svc iam`: prints the least IAM policy for what is switched on."""

import json

import click

from svc.cli.commands import settings_of, unusable


@click.command()
@click.option(
    "--for", "who", type=click.Choice(["run", "init", "dlq"]), multiple=True, default=("run",),
    help="The commands that are to be allowed; may be given several times. Default: run.",
)  # fmt: skip
@click.option("--account", metavar="ID", help="The queue's account, where its address does not tell.")
@click.option("--dlq", "dead_letters", metavar="NAME", help="The dead-letter queue's name, if not SQS_DLQ_NAME.")
@click.option("--kms-key", metavar="ARN", help="The KMS key of the queue, if it has one of its own.")
@click.option("--with-aws", is_flag=True, help="With --for dlq: `svc dlq redrive --with-aws` too.")
@click.option("--no-send", is_flag=True, help="Without sending messages over the API.")
@click.option(
    "--queue-policy", metavar="PRINCIPAL",
    help="Print the policy of the queue instead, for a queue of another account: PRINCIPAL is the ARN of whoever runs it.",
)  # fmt: skip
@click.option("--assume", is_flag=True, help="Print the policy of who assumes SQS_ROLE_ARN instead.")
def iam(
    who: tuple[str, ...],
    account: str | None,
    dead_letters: str | None,
    kms_key: str | None,
    with_aws: bool,
    no_send: bool,
    queue_policy: str | None,
    assume: bool,
) -> None:
    """Print the least IAM policy for the features that are switched on.

    It is the policy of whoever runs the service, or of the role of SQS_ROLE_ARN. Where the queue belongs to another account, it
    needs a policy too: --queue-policy.
    """
    settings = settings_of()
    from svc.sqs import permissions

    asked = permissions.Asked(who, account, dead_letters, kms_key, not no_send, with_aws)  # type: ignore[arg-type]
    if assume and settings.sqs_role_arn is None:
        unusable(["SQS_ROLE_ARN is not set; --assume prints the policy of who assumes that role"])
    if assume:
        shown = permissions.assume_policy(settings)
    elif queue_policy is not None:
        shown = permissions.queue_policy(settings, asked, queue_policy)
    else:
        shown = permissions.policy(settings, asked)
    click.echo(json.dumps(shown, indent=2))
    if dead_letters is None and settings.sqs_dlq_name is None and queue_policy is None and not assume:
        click.echo("svc: without SQS_DLQ_NAME or --dlq nothing is allowed on a dead-letter queue", err=True)
