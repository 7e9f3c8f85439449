#!/usr/bin/env bash
# The records in results/reference: every algorithm and reference on every proxy that it supports, three seeds.
# What is complete is skipped, so it can be stopped and started again. The committed records are of older configurations,
# which lack today's parameters, and are refused: give the runs another --out, or an empty one.
set -euo pipefail
common=(--suite mini --budget 2048 --eval-points 11 --out results/reference)
all=ddpo,alignprop,tdpo,tdpo_r,base,best_of_n
for seed in 0 1 2; do
    overopt-bench sweep --algo "$all" --proxy imagereward,aesthetic,pickscore,hpsv2,clipscore --seeds "$seed" "${common[@]}"
    overopt-bench sweep --algo "${all/alignprop,/}" --proxy jpeg_compressibility,jpeg_incompressibility --seeds "$seed" "${common[@]}"
done
overopt-bench report results/reference/mini --out results/reference/report
overopt-bench report results/reference/mini/imagereward --out results/reference/report-imagereward
