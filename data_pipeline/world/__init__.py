"""Small worlds on this machine: scenes that are drawn, or your own photographs, behind a server on loopback.

In: a number of scenes, or a folder. Out: pictures (`on_disk`, `folder`), a catalogue of their URLs in LAION's schema (`laion`),
labels and questions, and the server (`server`) that a download fetches from.

    scenes (what is in a scene, and what is said of it) -> drawing (its pixels) -> on_disk
"""
