"""A stock Debian 12 in a virtual machine, for what this machine's own kernel, container or rights cannot show."""
