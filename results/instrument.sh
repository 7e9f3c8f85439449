#!/usr/bin/env bash
# The instrument's checks: comparisons whose answer is known, with the runs of results/reference beside those made here.
# results/instrument/README.md has what comes out. What is complete is skipped.
set -euo pipefail
out=results/instrument
common=(--suite mini --algo ddpo --out "$out")

# A/A: ddpo under another name, with a sampling stream of its own and with the same one
overopt-bench sweep --config results/reference/mini/imagereward/ddpo/seed0/config.json --plugin "$out/twin.py" \
    --algo ddpo_twin --proxy imagereward --seeds 0-9 --out "$out"
overopt-bench sweep "${common[@]}" --budget 2048 --proxy imagereward --seeds 0-1 --tag again

# known effects: the truth as proxy, a smaller learning rate, a smaller budget
overopt-bench sweep "${common[@]}" --budget 2048 --proxy human --seeds 0-5
overopt-bench sweep "${common[@]}" --budget 2048 --proxy imagereward --seeds 0-5 --set lr=7e-4 --tag slower
overopt-bench sweep "${common[@]}" --budget 1536 --proxy imagereward --seeds 0 --tag shorter

# what the critic does: TDPO with one that learns nothing
overopt-bench sweep --suite mini --algo tdpo --budget 2048 --proxy imagereward --seeds 0-9 --set critic_lr=1e-12 \
    --set critic_updates=1 --tag blind --out "$out"

# what there is for a critic to explain: of the base model's returns, and of those of the policies that TDPO ended with
overopt-bench ceiling --suite mini --proxy imagereward,aesthetic,pickscore --out "$out/ceiling.json"
for proxy in imagereward aesthetic pickscore; do
    for seed in 0 1 2; do
        overopt-bench ceiling --run "results/reference/mini/$proxy/tdpo/seed$seed" --out "$out/ceiling-$proxy-$seed.json"
    done
done

python "$out/check.py" >"$out/README.md"
