"""For all tests: every server of theirs is on loopback, whatever proxies the environment names."""

import os

for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]
