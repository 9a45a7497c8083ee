"""Changes a host's interfaces and undoes the change unless the host is still reached.

It is run by the interpreter of the distribution, with its standard library alone, and knows nothing of Salt.
Nothing touches the host when it is imported.
"""
