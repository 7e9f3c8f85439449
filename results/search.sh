#!/usr/bin/env bash
# The search for mini's settings, on prompts and a seed that no reported run uses. `results/README.md` has the rule, which was
# written down first, and what was chosen. What is complete is skipped.
set -euo pipefail
common=(--proxy imagereward --seeds 100 --train-split tuning --suite mini --budget 1024 --eval-points 2 --out results/search)

# 1. what all algorithms with a ratio share, with DDPO alone: which steps are trained, inside which trust region
trial() { overopt-bench sweep --algo ddpo "${common[@]}" --set "$1" --set "$2" --set "$3" --tag "$4"; }
trial skip_last_steps=2 ratio=plain clip_range=0.2 plain-skip2
trial skip_last_steps=0 ratio=plain clip_range=0.2 plain
trial skip_last_steps=0 ratio=guard clip_range=0.2 guard
trial skip_last_steps=0 ratio=guard clip_range=0.05 guard-narrow

# 2. six trials of each algorithm that trains: three learning rates with each of two sizes of an update; grpo takes ddpo's
# values, for with them it is ddpo to the last digit
for rate in low middle high; do
    case $rate in
        low) lr=3e-4 alignprop=1e-4 tdpo=1e-4 ;;
        middle) lr=1e-3 alignprop=3e-4 tdpo=3e-4 ;;
        high) lr=3e-3 alignprop=1e-3 tdpo=1e-3 ;;
    esac
    overopt-bench sweep --algo ddpo,nft "${common[@]}" --set "lr=$lr" --set updates_per_epoch=2 --tag "$rate-2"
    overopt-bench sweep --algo ddpo,nft "${common[@]}" --set "lr=$lr" --set updates_per_epoch=4 --tag "$rate-4"
    overopt-bench sweep --algo alignprop "${common[@]}" --set "lr=$alignprop" --set batch_size=32 --tag "$rate-32"
    overopt-bench sweep --algo alignprop "${common[@]}" --set "lr=$alignprop" --set batch_size=64 --tag "$rate-64"
    overopt-bench sweep --algo tdpo "${common[@]}" --set "lr=$tdpo" --tag "$rate"
done

# 3. the other three of TDPO's six, for its critic, beside the one of its highest learning rate
overopt-bench sweep --algo tdpo "${common[@]}" --set lr=1e-3 --set critic_updates=1 --tag critic-once
overopt-bench sweep --algo tdpo "${common[@]}" --set lr=1e-3 --set critic_lr=3e-4 --tag critic-slow
overopt-bench sweep --algo tdpo "${common[@]}" --set lr=1e-3 --set critic_lr=3e-3 --tag critic-fast

# 4. what was taken, for a whole default budget: does the critic still explain something, and does it come back after a reset
overopt-bench sweep --algo tdpo,tdpo_r --proxy imagereward --seeds 100 --train-split tuning --suite mini \
    --budget 4096 --eval-points 3 --tag regime --out results/search
