#!/usr/bin/env bash
# A closer look at overoptimization itself: default settings and budget, three times the evaluation images.
set -euo pipefail
overopt-bench sweep --algo ddpo,alignprop --proxy imagereward --seeds 0-2 --suite mini --eval-images 192 --out results/closeup
overopt-bench report results/closeup --out results/closeup-report
