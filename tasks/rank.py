"""`python -m tasks.rank`: one more process of a fine-tuning; the first one starts it and ends it."""

import logging
import signal
import sys
from pathlib import Path

from tasks import environment, params
from tasks.errors import RegraftError
from tasks.stages import finetuning
from tasks.training import processes
from tasks.training.ranks import GoneError


def main() -> int:
    environment.quiet()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the first process alone decides to stop
    order = processes.received(sys.stdin)
    settings, root = params.parse(order.task["params"]), Path(order.task["root"])
    try:
        with processes.joined(order) as ranks:
            finetuning.assist(settings, root, ranks, order.device)
    except GoneError:
        return processes.LOST
    except RegraftError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
