"""The audio-text model: waveform → log-mel → Cnn14 or HTSAT, caption → text encoder, and where they meet.

`front_end`, `cnn14` and `htsat` are the audio side, `text` is the text side, `projections` lead to the shared space;
`clap` joins them, saves and loads them. `checkpoints` takes models of other projects and gives ours back in their
form. Nothing is imported here: a config can be read without waiting for the text library.
"""
