"""Draws the members of a run over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"pending": "#d9d9d9", "starting": "#fdd49e", "syncing": "#fdae6b", "spare": "#9ecae1", "draining": "#bcbddc"}
SERVING = {"rollouts": "#31a354", "learner": "#3182bd"}


def _line(name: str) -> str:
    """A process of the learner keeps its line, whether it serves as a rank or not."""
    return name.replace("learner rank", "learner").replace("learner member", "learner")


def draw_members(part: dict[str, Any], path: Path) -> None:
    """A bar for each member, coloured by its state, with what was done to the run, and when each step ended."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    looks = [(at, [(_line(name), role, state) for name, role, state in members]) for at, members in part["members"]]
    start = looks[0][0]
    end = next((at for at, members in looks if not members and at > part["step_ends"][-1]), looks[-1][0])
    strikes = sorted(part["recovery_s"], key=lambda strike: strike["at"])
    names = sorted({(role, name) for _, members in looks for name, role, _ in members})
    rows = {name: number for number, (_, name) in enumerate(reversed(names))}
    figure, axes = pyplot.subplots(figsize=(11, 4.4), dpi=110)
    for (at, members), until in zip(looks, [*(look[0] for look in looks[1:]), end], strict=True):
        for name, role, state in members:
            colour = SERVING[role] if state == "serving" else COLOURS.get(state, "#e34a33")
            axes.barh(rows[name], until - at, left=at - start, height=0.7, color=colour, linewidth=0)
    for number, strike in enumerate(strikes, start=1):
        axes.axvline(strike["at"] - start, color="#de2d26", linewidth=1.2)
        axes.text(strike["at"] - start, len(rows) - 0.25, str(number), color="#de2d26", ha="center", fontsize=9)
    axes.plot([at - start for at in part["step_ends"]], [-0.8] * len(part["step_ends"]), "|k", markersize=8)
    axes.set_yticks([*rows.values(), -0.8], [*rows, "ends of steps"])
    axes.set_xlabel("seconds since the run began")
    axes.set_xlim(0, end - start)
    handles = [Patch(color=SERVING["rollouts"], label="serving"), Patch(color=SERVING["learner"], label="rank serves")]
    handles += [Patch(color=colour, label=state) for state, colour in COLOURS.items()]
    axes.legend(handles=handles, ncols=len(handles), loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8)
    listed = [f"{number} {strike['what']}" for number, strike in enumerate(strikes, start=1)]
    lines = ["   ".join(listed[i : i + 3]) for i in range(0, len(listed), 3)]
    axes.set_title("\n".join(lines), fontsize=9, loc="left", pad=18)
    figure.tight_layout()
    figure.savefig(path)
