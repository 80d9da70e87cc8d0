"""Checkpoints of other projects, one file a family: their names of the same weights, and what their files leave unsaid.

ledger
    the tensors of a file, each of which is taken or ignored for a reason
files
    the containers: what torch wrote, safetensors, folders
front_ends
    the filterbank that a file stores, beside the one that is computed
originals
    the names of HTSAT's own release, which two families use
hugging_face, laion, msclap, panns, yamnet, blat
    the families
onnx_files
    export only, for a runtime without torch

`clapcur.models.checkpoints` is the door to all of them.
"""
