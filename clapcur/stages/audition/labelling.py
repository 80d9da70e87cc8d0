"""A page for labelling a sample of a pool: listen to each clip, and choose its class.

The page is one HTML file without a server. It has no predicted class, neither visible nor in its data, because a
listener who sees a prediction tends to agree with it. It exports a table that an experiment takes as evaluation set.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clapcur.data.manifest import Manifest
from clapcur.pages import render
from clapcur.stages.audition import HEAD_ROOM, AuditionConfig, embed_sounds, silent_clips
from clapcur.stages.audition.choosing import even_shares


def choose_clips(
    groups: Mapping[str, str], num_clips: int, seed: int, predicted: Mapping[str, str] | None = None
) -> list[str]:
    """Choose clips to label, at most one of each recording; the same arguments always choose the same clips.

    Parameters
    ----------
    groups : mapping of str to str
        The recording of each clip, as `Manifest.groups` gives it.
    num_clips : int
        Number of clips to choose; all recordings if there are fewer.
    seed : int
        Seed of the draw and of the order.
    predicted : mapping of str to str, optional
        Predicted class of each clip. If given, only these clips are chosen from, and the classes are represented as
        evenly as possible.

    Returns
    -------
    list of str
        Clip ids in random order, so that their order does not show the predicted class.
    """
    rng = np.random.default_rng(seed)
    known = sorted(groups if predicted is None else set(groups) & set(predicted))
    table = pd.DataFrame({"clip_id": known, "group": [groups[clip] for clip in known]}, dtype="str")
    table = table.iloc[rng.permutation(len(table))].drop_duplicates("group")
    if predicted is not None:
        names = table["clip_id"].map(predicted)
        sizes = names.value_counts()
        shares = even_shares({name: int(sizes[name]) for name in rng.permutation(sorted(sizes.index))}, num_clips)
        table = table[table.groupby(names).cumcount() < names.map(shares)]
    chosen = table["clip_id"].to_numpy()[:num_clips]
    return [str(clip) for clip in rng.permutation(chosen)]


def labelling_page(
    pool: Manifest, clip_ids: Sequence[str], class_names: Sequence[str], how: str, config: AuditionConfig
) -> tuple[str, dict[str, int]]:
    """Return a page for labelling clips as HTML, and the numbers of its clips and of those that can be played.

    Parameters
    ----------
    pool : Manifest
    clip_ids : sequence of str
        Clips of the pool, in the order of the page.
    class_names : sequence of str
        Classes to choose from.
    how : str
        How the clips were chosen, in words.
    config : AuditionConfig
        How much audio the page includes, and its maximum size.

    Raises
    ------
    ValueError
        Even without audio, the clips exceed the size limit of the page.
    """
    paths = pool.paths
    chosen = pd.DataFrame({"clip_id": clip_ids, "path": [paths[clip] for clip in clip_ids]}, dtype="str")
    clips = silent_clips(chosen, [pool], config)
    page_id = hashlib.sha256("\n".join([*clip_ids, "", *class_names]).encode()).hexdigest()[:12]

    def html() -> str:
        silent = sum("audio" not in clip for clip in clips.values())
        data: dict[str, Any] = {"id": page_id, "classes": class_names, "clips": clips}
        return render("labelling.html", data=data, num_clips=len(clips), how=how, silent=silent)

    room = config.max_bytes - HEAD_ROOM - len(html().encode())
    if room < 0:
        raise ValueError(
            f"a page of {len(clips)} clips needs {config.max_bytes - room:,} bytes even without audio, but its limit "
            f"is {config.max_bytes:,}; lower --num-clips"
        )
    embed_sounds(clips, room, config)
    return html(), {"clips": len(clips), "embedded": sum("audio" in clip for clip in clips.values())}
