"""The offline world: real flags, real encyclopaedia text, scenes drawn from a seed, questions with gold answers."""

from mmsr.world.data import Country, FlagImage, Page, World, load_world
from mmsr.world.scenes import Box, PlacedFlag, Scene, draw_scene

__all__ = [
    "Box",
    "Country",
    "FlagImage",
    "Page",
    "PlacedFlag",
    "Question",
    "Scene",
    "World",
    "draw_scene",
    "load_world",
    "make_questions",
]
