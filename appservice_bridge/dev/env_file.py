"""`env.json`: what a program that drives a `dev` has to know."""

import json
from typing import Any, Final

from appservice_bridge.dev.appservices import PluggedIn
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.stack import Stack

VERSION: Final = 1


def write_env_file(stack: Stack) -> None:
    """Write the file whole, readable to its owner alone, over the one before."""
    write_private(stack.directory.env, json.dumps(contents(stack), indent=2) + "\n")


def contents(stack: Stack) -> dict[str, Any]:
    """Everything that is in the file."""
    secrets = stack.directory.secrets()
    return {
        "version": VERSION,
        "homeserver_url": stack.synapse.url,
        "server_name": stack.synapse.settings.server_name,
        "registration_shared_secret": secrets["registration_shared_secret"],
        "relay_url": stack.bridge.relay.url,
        "admin_url": stack.bridge.admin.url,
        "admin_token": secrets["admin_token"],
        "database": stack.synapse.settings.database,
        "config": str(stack.directory.config),
        "pids": {
            "postgres": stack.postgres.child.pid,
            "synapse": stack.synapse.child.pid,
            "bridge": [stack.bridge.child.pid],
        },
        "appservices": {each.registration.id: _appservice(each) for each in stack.appservices},
        "registrations": [str(appservice.file) for appservice in stack.appservices],
        "users": stack.users,
        "logs": {
            "postgres": str(stack.postgres.cluster.log),
            "synapse": str(stack.synapse.log),
            "bridge": str(stack.bridge.log),
        },
    }


def _appservice(appservice: PluggedIn) -> dict[str, Any]:
    registration = appservice.registration
    return {
        "as_token": registration.as_token,
        "hs_token": registration.hs_token,
        "url": registration.url,
        "sender_localpart": registration.sender_localpart,
    }
