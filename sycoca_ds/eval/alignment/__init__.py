"""What patches and texts have to do with each other: classes of pixels by patch-text similarity, and Grad-CAM of words.

In: a model, its pictures, known regions and classes of pixels. Out: numbers and maps for the task `alignment`.
"""
