"""`python -m appservice_bridge` is the command line."""

from appservice_bridge.cli.main import main

main()
