#!/usr/bin/env bash
# What options do to numbers, on prompts and a seed that no reported run uses: the KL penalty at four weights and two
# places, and grpo, which has no reference records. One seed: enough to see an effect, not to compare methods.
set -euo pipefail
small=(--proxy imagereward --seeds 100 --train-split tuning --suite mini --budget 512 --eval-points 2 --out results/search)
overopt-bench sweep --algo ddpo,alignprop,grpo "${small[@]}" --tag effect
overopt-bench sweep --algo grpo --set window=2 "${small[@]}" --tag effect-window
for beta in 0.01 0.1 1 10; do
    overopt-bench sweep --algo ddpo --mitigation "kl:beta=$beta" "${small[@]}" --tag effect
done
for beta in 1 10; do
    overopt-bench sweep --algo ddpo --mitigation "kl:beta=$beta,where=reward" "${small[@]}" --tag effect
done
overopt-bench sweep --algo alignprop --mitigation kl:beta=0.1 "${small[@]}" --tag effect
