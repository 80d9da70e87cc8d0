"""Checkpoints of other projects, one module per family: their tensor names, and settings that their files lack.

ledger
    the tensors of a file, each of which is mapped or ignored for a reason
files
    the containers: torch files, safetensors, folders
front_ends
    comparison of the filterbank in a file with the computed one
originals
    the names of the towers in their own releases, which two families use
hugging_face, laion, msclap, panns, yamnet, blat
    the families
onnx_files
    export only, for a runtime without torch

`clapcur.models.checkpoints` is the interface to all of them.
"""
