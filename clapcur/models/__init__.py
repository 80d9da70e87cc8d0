"""The audio-text model: waveform → log-mel → Cnn14, caption → text encoder, and where they meet.

`front_end` and `cnn14` are the audio side, `text` is the text side, `clap` joins them, saves and
loads them. Nothing is imported here: a config can be read without waiting for the text library.
"""
