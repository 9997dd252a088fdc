"""Pictures with questions about them, and an export, for tests of served policies."""

import shutil

import numpy as np

from actors.data.shapes import draw_row, encode_png, paint
from cluster.serving.card import write_card
from configs.load import load_config


def draw_rows(number):
    """(encoded picture, row) of the shapes task."""
    rng = np.random.default_rng(3)
    drawn = [draw_row(rng, "heldout", needs_full_share=0.3) for _ in range(number)]
    return [(encode_png(paint(row.scene)), row) for row in drawn]


def make_export(folder):
    """The shipped model as a run exports it."""
    shutil.copytree("configs/tiny", folder)
    write_card(folder, load_config("tiny"), step=1)
    return folder
