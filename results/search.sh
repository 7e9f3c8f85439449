#!/usr/bin/env bash
# The search that chose the mini suite's learning rates: the same three for every algorithm, on prompts and a seed
# that no reported run uses. `results/README.md` says how one was chosen.
set -euo pipefail
for lr in 3e-4 1e-3 3e-3; do
    overopt-bench sweep --algo ddpo,alignprop,tdpo --proxy imagereward --seeds 100 --train-split tuning --suite mini \
        --budget 2048 --eval-points 2 --set "lr=$lr" --set "tdpo.critic_lr=$lr" --tag "lr$lr" --out results/search
done
