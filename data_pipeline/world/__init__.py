"""Small worlds on this machine: scenes that are drawn, or your own photographs, behind a server on loopback.

In: a number of scenes, or a folder. Out: pictures (`on_disk`, `folder`), a catalogue of their URLs in LAION's schema (`laion`),
labels, questions and masks, and the server (`server`) that a download fetches from.

    drawn (two worlds of scenes: what is in them, what is said of them, their pixels) -> on_disk
"""
