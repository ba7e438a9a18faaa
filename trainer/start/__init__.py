"""From a command to processes: ranks on this machine and on the hosts of a hostfile."""
