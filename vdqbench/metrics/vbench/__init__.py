"""The dimensions of VBench (Huang et al., CVPR 2024; arXiv 2311.17982), one small file each, on frames and not on files.

A dimension carries VBench's name only where the network is VBench's own, from a maintained library. Where no such library has it
(AMT-S, ViCLIP, Tag2Text), another one is plugged in, and its name becomes part of the score's name: those numbers are not VBench's.
For the leaderboard's own numbers there is `vdqbench.metrics.vbench_official`.
"""
