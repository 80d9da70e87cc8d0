"""The audio-text model: waveform → log-mel → Cnn14, HTSAT or YAMNet; caption → text encoder; and a shared space.

`front_end`, `cnn14`, `htsat` and `yamnet` are the audio side, `text` is the text side, and `projections` lead to the
shared space; `clap` joins, saves and loads them. `checkpoints` reads and writes the formats of other projects.
Nothing is imported here, so that a config can be read without importing the text library.
"""
