#!/usr/bin/env bash
# The records in results/reference: every algorithm and reference on every proxy that it supports with three seeds, and ten
# on the three proxies that overoptimize most. What is complete is skipped, so it can be stopped and started again.
# grpo is left out: with the suite's values it is ddpo to the last digit.
set -euo pipefail
common=(--suite mini --budget 2048 --out results/reference)
all=ddpo,alignprop,nft,tdpo,tdpo_r,base,best_of_n
overopt-bench sweep --algo "$all" --proxy imagereward,aesthetic,pickscore,hpsv2,clipscore --seeds 0-2 "${common[@]}"
overopt-bench sweep --algo "${all/alignprop,/}" --proxy jpeg_compressibility,jpeg_incompressibility --seeds 0-2 "${common[@]}"
overopt-bench sweep --algo "$all" --proxy imagereward,aesthetic --seeds 3-9 "${common[@]}"
overopt-bench sweep --algo "${all/alignprop,/}" --proxy jpeg_compressibility --seeds 3-9 "${common[@]}"
overopt-bench report results/reference/mini --out results/reference/report
overopt-bench report results/reference/mini/imagereward --out results/reference/report-imagereward
