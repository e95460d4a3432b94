"""Trains the network in every layout and under every setting that goes with it."""

from tests.distributed.layouts import LAYOUTS, settings
from tests.distributed.network import SETTINGS, train
from tests.distributed.worker import run


def work(rank, ranks):
    return {
        f"{layout}: {setting}": train(make(), SETTINGS[setting])
        for layout, make in LAYOUTS[ranks].items()
        for setting in settings(layout, ranks)
    }


if __name__ == "__main__":
    run(work)
