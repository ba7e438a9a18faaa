"""Config section of the checks that nodes must pass before ranks start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PreflightConfig:
    """`palimpsest doctor`, and the first minute of a job on several nodes."""

    enabled: bool = True
    """Check the nodes of a job on several before its ranks start; every attempt does, as its nodes may be others."""
    timeout_s: int = 50
    """Seconds from the start of Python in which all checks must be done; whatever hangs is ended and named then. With
    the start of srun a failing job is over within a minute. Range: [15, 600]; raise it where loading torch from the
    shared disk alone takes half of this."""
    rendezvous_s: int = 25
    """Seconds that the first process waits for those of the other nodes, from its own arrival. Range: [1, timeout_s).
    Loading torch took 3 to 7 s from a local disk."""
    max_clock_skew_s: float = 1.0
    """Seconds that a node's clock may be off. File times, tokens and logs of nodes are compared with each other."""
    min_matmul_share: float = 0.8
    """Share of the median matmul rate of all GPUs that each must reach. Range: [0, 1]; 0 accepts all. GPUs of one model
    differ by 8 % on average and by 22 % at most; sick ones are 1.5 times slower (arXiv:2208.11035)."""
    max_ecc_errors: int = 0
    """Uncorrected ECC errors of a GPU since its driver was loaded that are accepted. Range: at least 0."""
    min_intra_node_gb_per_s: float | None = None
    """Bus bandwidth of an all-reduce among the GPUs of a node, in 10^9 bytes a second as nccl-tests counts it. null: 4
    on GPUs, which a slot that fell back to PCIe 3.0 x4 (3.9 GB/s) does not reach, and no floor on CPUs. Two thirds of
    what the table shows for your nodes finds more."""
    min_inter_node_gb_per_s: float | None = None
    """The same between nodes, of all GPUs of a node together. null: 0.5 on GPUs, which tells a network of 10 Gb/s
    (1.2 GB/s) from the 1 Gb/s (0.12 GB/s) of a management network that NCCL fell back to, and no floor on CPUs."""
    visible_s: float = 8.0
    """Seconds in which a file that one node writes must be seen by all; NFS may answer from what it knew 3 s before
    (acregmin in nfs(5)). Range: (0, timeout_s)."""
