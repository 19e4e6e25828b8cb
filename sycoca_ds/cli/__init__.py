"""The command `sycoca`: words in, the function of another room that does them out.

table: every command's name, function, line and example; `dispatch` finds it and starts it; `train` puts DeepSpeed's launcher before
the training, and `deepspeed_runner` waits in it; `completion` writes the names and options for shells. Nothing here imports a
command before it is the one that runs.
"""
