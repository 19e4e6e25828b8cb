"""A launch on several hosts, looked at before it starts; and what commands that run others share.

`python -m sycoca_ds.launch check`: hostfile -> check, which asks a probe on every host (shell: ssh) -> judgement -> findings
`python -m sycoca_ds.launch print`: hostfile -> commands, what each host would run
demo, ablations: processes (environment, ports, their end), the guard around each, display
"""
