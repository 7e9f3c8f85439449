#!/usr/bin/env bash
# Makes the environment in which dump_trl.py runs: environment_trl.sh DIR
#
# DIR gets trl and the libraries of its time; torch, numpy, pandas, safetensors and whatever else they import are the
# ones already installed, which DIR shadows: run with PYTHONPATH=DIR HF_HUB_OFFLINE=1, from an environment in which
# overopt-bench is installed. Nothing outside DIR changes.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }

packages=(
    trl==0.23.0             # the last release with DDPOTrainer and AlignPropTrainer; 0.24 removed both
    transformers==4.56.2    # trl 0.23 asks for >= 4.56.1; the release line that it was written for
    tokenizers==0.22.1      # transformers 4.56 asks for >= 0.22, <= 0.23
    huggingface-hub==0.35.3 # transformers 4.56 asks for < 1.0
    diffusers==0.35.1       # of the same month; still has pipeline._encode_prompt, which trl calls
    peft==0.17.1            # of the same month
    accelerate==1.10.1      # of the same month; trl asks for >= 1.4
    datasets==4.1.1         # imported by trl.trainer, not used here; trl asks for >= 3.0
    pyarrow==21.0.0         # imported by datasets
    dill==0.4.0             # imported by datasets
    multiprocess==0.70.16   # imported by datasets
    xxhash==3.5.0           # imported by datasets
    fsspec==2025.9.0        # datasets 4.1 asks for <= 2025.9
)

# --no-deps: the pins above are the whole of it, and torch must not be replaced
python -m pip install --target "$1" --no-deps "${packages[@]}"
