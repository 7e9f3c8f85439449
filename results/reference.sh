#!/usr/bin/env bash
# The records in results/reference: every algorithm and reference on every proxy that it supports with three seeds, and ten
# on the four proxies on which the truth falls. The base model is the same for all seeds. What is complete is skipped, so it
# can be stopped and started again. grpo is left out: with the suite's values it is ddpo to the last digit.
set -euo pipefail
common=(--suite mini --budget 2048 --out results/reference)
algos=ddpo,alignprop,nft,tdpo,tdpo_r,best_of_n
jpeg=${algos/alignprop,/} # the size of a file has no gradient
overopt-bench sweep --algo "$algos,base" --proxy imagereward,aesthetic,pickscore,hpsv2,clipscore --seeds 0-2 "${common[@]}"
overopt-bench sweep --algo "$jpeg,base" --proxy jpeg_compressibility,jpeg_incompressibility --seeds 0-2 "${common[@]}"
overopt-bench sweep --algo "$algos" --proxy imagereward,aesthetic --seeds 3-9 "${common[@]}"
overopt-bench sweep --algo "$jpeg" --proxy jpeg_compressibility,jpeg_incompressibility --seeds 3-9 "${common[@]}"
overopt-bench report results/reference/mini --out results/reference/report
overopt-bench report results/reference/mini/imagereward --out results/reference/report-imagereward
