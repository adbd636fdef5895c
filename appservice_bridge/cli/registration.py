"""`registration`: write a new one, or the copy of one that the homeserver gets."""

import os
import stat
from pathlib import Path
from typing import Annotated, Final

import typer

from appservice_bridge.cli.check import show
from appservice_bridge.cli.flags import Command, Group
from appservice_bridge.cli.removing import remove
from appservice_bridge.config.document import Document
from appservice_bridge.config.environment import CONFIG_VARIABLE
from appservice_bridge.config.faults import ConfigError, Fault
from appservice_bridge.config.homeserver_copy import homeserver_copy
from appservice_bridge.config.loading import load_alone
from appservice_bridge.config.new_registration import Wish, localpart_from, written
from appservice_bridge.config.registrations import (
    load_registration,
    parse_registration,
    read_registration,
)
from appservice_bridge.config.values import http_url
from appservice_bridge.domain.registration import Registration, relay_path

registration = typer.Typer(
    help="Write a registration or the homeserver's copy of one, or forget one.",
    name="registration",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
registration.command("remove", cls=Command)(remove)

NO_URL: Final = "null"
_PRIVATE: Final = 0o600

_STDOUT: Final = Path("-")

Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Write here; -: to stdout.", show_default=False
    ),
]


@registration.command("new", cls=Command)
def new(
    appservice_id: Annotated[str, typer.Argument(metavar="ID", help="Its name, unique here.")],
    url: Annotated[
        str, typer.Option(help=f"Where the appservice listens; {NO_URL}: nothing is delivered.")
    ] = "http://127.0.0.1:29300",
    sender: Annotated[
        str | None,
        typer.Option("--sender", "--sender-localpart", help="The bot's localpart; by default ID."),
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="Regex of users that are its alone; repeatable.")
    ] = None,
    shared_user: Annotated[
        list[str] | None, typer.Option(help="Regex of users it shares; repeatable.")
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Also deliver typing, receipts and presence.")
    ] = False,
    output: Output = _STDOUT,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a registration for an encrypted bot, with fresh tokens.

    Example: registration new my-bot --user '@mybot_.*' -o registrations/my-bot.yaml
    """
    wish = Wish(
        id=appservice_id,
        url=None if url == NO_URL else url,
        sender_localpart=localpart_from(appservice_id) if sender is None else sender,
        exclusive_users=tuple(user or ()),
        shared_users=tuple(shared_user or ()),
        ephemeral=ephemeral,
    )
    text = _checked(written(wish))
    if output == _STDOUT:
        typer.echo(text.encode(), nl=False)
        return
    _write(output, text, overwrite=force, private=True)
    typer.echo(
        f"wrote {output}; next: appservice-bridge registration for-homeserver "
        f"{output} --config FILE",
        err=True,
    )


@registration.command("for-homeserver", cls=Command)
def for_homeserver(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bridge's registration.")],
    relay: Annotated[
        str | None, typer.Option(metavar="URL", help="The relay, as the homeserver calls it.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(envvar=CONFIG_VARIABLE, metavar="FILE", help="Take the relay from here."),
    ] = None,
    output: Output = _STDOUT,
    force: Annotated[bool, typer.Option("--force", help="Overwrite any existing file.")] = False,
) -> None:
    """Write the copy that the homeserver gets: its url points at the relay."""
    reading = read_registration(file)
    show(reading.faults, reading.warnings)
    if reading.registration is None or reading.document is None:
        raise typer.Exit(1)
    text = _copy(reading.document, reading.registration, relay, config)
    if output == _STDOUT:
        typer.echo(text.encode(), nl=False)
        return
    if _is_same(output, file):
        _refuse(output, "is the bridge's own registration; write the copy to another file")
    overwrite = force or _is_copy_of(reading.registration, output)
    _write(output, text, overwrite=overwrite, private=False)
    typer.echo(
        f"wrote {output}; name it in the homeserver's app_service_config_files and restart that",
        err=True,
    )


def _checked(text: str) -> str:
    reading = parse_registration(text, file="new registration")
    if reading.faults:
        raise typer.BadParameter("; ".join(fault.reason for fault in reading.faults))
    show((), [Fault(file=each.file, reason=each.reason) for each in reading.warnings])
    return text


def _copy(
    document: Document, registration: Registration, relay: str | None, config: Path | None
) -> str:
    if relay is not None:
        try:
            base = http_url(relay)
        except ValueError as error:
            raise typer.BadParameter(f"{error}", param_hint="--relay") from None
    elif config is not None:
        base = _relay_of(config, registration)
    else:
        raise typer.BadParameter("give --relay URL or --config FILE")
    return homeserver_copy(document, url=base + relay_path(registration.id))


def _relay_of(config: Path, registration: Registration) -> str:
    """The relay's base URL by the config, with which the appservice must want delivery."""
    try:
        found = load_alone(config)
    except ConfigError as error:
        show(error.faults)
        raise typer.Exit(1) from None
    listen = found.listen
    if listen.relay.is_everywhere:
        reason = f"listen.relay is {listen.relay}, which nobody can call; give --relay URL"
        _refuse(config, reason)
    if found.settings(registration).transport == "none":
        reason = f"nothing is delivered to {registration.id}: it has no url and no transport"
        show((), [Fault(file=registration.source, reason=reason)])
    return listen.relay_url


def _is_same(output: Path, file: Path) -> bool:
    try:
        return output.samefile(file)
    except OSError:
        return False


def _is_copy_of(registration: Registration, output: Path) -> bool:
    """Whether a file may be overwritten unasked: an earlier copy, or a device like /dev/null."""
    try:
        if not stat.S_ISREG(output.stat().st_mode):
            return True
        return load_registration(output).id == registration.id
    except (OSError, ConfigError):
        return False


def _write(path: Path, text: str, *, overwrite: bool, private: bool) -> None:
    """Write tokens: a new file is for its owner alone; an old one is made so if `private`.

    An earlier copy keeps its owner and mode, which were chosen for the homeserver.
    """
    how = os.O_WRONLY | os.O_CREAT | (0 if overwrite else os.O_EXCL)
    try:
        descriptor = os.open(path, how, _PRIVATE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.truncate(0)
                if private:
                    os.fchmod(file.fileno(), _PRIVATE)
            file.write(text)
    except FileExistsError:
        _refuse(path, "exists already, and its tokens may be in use; --force overwrites it")
    except OSError as error:
        _refuse(path, f"cannot be written: {error.strerror}")


def _refuse(path: Path, reason: str) -> None:
    show([Fault(file=str(path), reason=reason)])
    raise typer.Exit(1)
