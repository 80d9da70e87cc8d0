"""Train: ONE loop for teacher and student; the loss and the mix of data are configuration.

- A teacher starts from fresh weights and sees the pairs of a manifest with hard targets (Eq. 1).
- A student starts from the teacher and sees an Improvement-Set, with replay, hard or soft targets (Eqs. 2-5).

Every random choice is a pure function of the seed and the step, so a training that was killed and resumed ends with
the weights of one that never stopped (equal to the bit on a CPU). The held-out pairs, grouped by recording, are in no
batch; they choose the checkpoint. The test set is never looked at.

Inputs by role: ``teacher_pairs`` (manifest) always; ``init`` (checkpoint) for a student; ``improvement_set`` with the
``pool`` and ``captions`` manifests its ids point to; ``replay`` (an improvement_set, such as DS) where replay is not
over all teacher pairs; ``teacher`` (checkpoint) where the soft targets come from another model than ``init``;
``evaluation`` (manifest) with ``selection="reference"`` alone, where the test set chooses.

In files::

    config       what a training is
    data         sources of pairs, without the held-out recordings
    step         one step: features by the micro-batch, loss over the whole batch
    ranks        processes that share a batch; ``helper`` is the program of all but the first
    selection    what chooses the weights
    loop         the loop and the stage
"""

from clapcur.stages.train.config import SoftLabels, TrainConfig
from clapcur.stages.train.data import TrainingData, gather_data
from clapcur.stages.train.features import TextFeatures
from clapcur.stages.train.loop import STAGE, train
from clapcur.stages.train.step import mask

__all__ = ["STAGE", "SoftLabels", "TextFeatures", "TrainConfig", "TrainingData", "gather_data", "mask", "train"]
