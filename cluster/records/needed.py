"""What a sample needs to be shown, against what an episode was shown: pure functions, for records and metrics."""

from __future__ import annotations

from actors.episode import Episode, PlayedGroup, Status
from actors.needs import need_of
from actors.views import View, shown_size


def needed_of(group: PlayedGroup) -> View | None:
    """The least that must be seen of a sample beside the quarter view; None where its data set does not say."""
    if group.needed_view is not None or group.needs_full is None:
        return group.needed_view
    return "full" if group.needs_full else "quarter"


def has_choice(episode: Episode) -> bool:
    """Whether the episode began with the quarter view, so that more could be asked for."""
    return episode.turns[0].view == "quarter"


def shows_the_needed(episode: Episode, needed: View) -> bool:
    """Whether the policy answered after the views that were needed and no others; any crop counts as the needed one."""
    shown = [need_of(turn.view) for turn in episode.turns[1:] if turn.view is not None]
    wanted = [] if needed == "quarter" else [need_of(needed)]
    return episode.status is Status.ANSWERED and shown == wanted


def least_tokens(group: PlayedGroup, episode: Episode, needed: View) -> float:
    """Visual tokens of the quarter view and what is needed beside it."""
    first = episode.turns[0].num_visual_tokens
    if needed == "quarter":
        return first
    height, width = shown_size(needed, group.full_size)
    return first + group.num_full_tokens * (height * width) / (group.full_size[0] * group.full_size[1])
