"""The tasks that a tiny model can be trained on, by name."""

from __future__ import annotations

from configs.tasks import TaskName
from learner.tiny.crop import CROP_TASK
from learner.tiny.shapes import SHAPES_TASK
from learner.tiny.task import Task

TASKS: dict[TaskName, Task] = {"shapes": SHAPES_TASK, "crop": CROP_TASK}
