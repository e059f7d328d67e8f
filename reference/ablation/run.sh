#!/usr/bin/env bash
# Trains every variant of the region module with the same data and budget, measures it on scenes that nothing was
# trained on, and writes docs/ablation.md and docs/ablation.svg. What is there already is not done again.
#
#   reference/ablation/run.sh [OUT]          OUT is runs/ablation if not given
#
# In the environment: SEEDS ("1 2 3"), VARIANTS (names; all), COUNT (scenes per variant and seed; 300), STEPS (replaces the
# steps of every stage, to try the path), REGION_STEPS (replaces those of the last two stages, to see what a larger budget
# changes), GPT4ROI (the program), TABLE (the table's file; docs/ablation.md). Several may run side by side on variants of
# different seeds; the costs are measured at the end of each, and true where nothing else runs.
set -euo pipefail

out=${1:-runs/ablation}
program=${GPT4ROI:-target/release/gpt4roi}
configs=configs/ablation
kinds=24

# train STAGE DIRECTORY INIT CHANGE...: one stage, or the rest of it.
train() {
    local stage=$1 directory=$2 init=$3 changes=()
    shift 3
    for change in "seed=$seed" ${init:+"init.from=[$init]"} ${STEPS:+"steps=$STEPS"} "$@"; do
        changes+=(--set "$change")
    done
    "$program" train "$configs/$stage.toml" --out "$directory" --resume "${changes[@]}"
}

# The fields of a region module as so many arguments, one per line.
fields() {
    tr ';' '\n' <<<"$1" | sed 's/^ *//; s/ *$//; /^$/d'
}

# The directory whose language model a variant takes. The language model sees how many tokens a region has and whether its
# place is told; variants that agree in these share the original's.
language_of() {
    case "$1" in
        *box_embedding=* | *tokens=*) echo "$directory" ;;
        *) echo "$out/$seed/original" ;;
    esac
}

# The variants that are wanted, as lines "NAME|REGION|JOINT" without spaces around the name.
variants() {
    while IFS='|' read -r name region joint; do
        name=$(tr -d ' ' <<<"$name")
        [[ -z $name || $name == \#* || " ${VARIANTS:-$name} " != *" $name "* ]] || echo "$name|$region|$joint"
    done <$configs/variants.txt
}

measure() {
    local directory=$1
    "$program" export "$directory/3-joint" --out "$directory/model"
    "$program" eval scenes --seed $((9000 + seed)) --count "${COUNT:-300}" --kinds $kinds --json \
        --model "$directory/model" >"$directory/eval.part"
    mv "$directory/eval.part" "$directory/eval.json"
}

for seed in ${SEEDS:-1 2 3}; do
    train 0-tower "$out/$seed/0-tower" ""
    while IFS='|' read -r name region joint; do
        directory=$out/$seed/$name
        [[ -e $directory/eval.json ]] && continue
        mapfile -t region < <(fields "$region")
        mapfile -t joint < <(fields "$joint")
        changes=("${region[@]/#/model.region.}")
        language=$(language_of "${region[*]}") own=()
        [[ $language == "$directory" ]] && own=("${changes[@]}")
        train 1-language "$language/1-language" "{path='$out/$seed/0-tower', take=['vision_model.']}" "${own[@]}"
        changes+=(${REGION_STEPS:+"steps=$REGION_STEPS"})
        train 2-region "$directory/2-region" "{path='$language/1-language'}" "${changes[@]}"
        train 3-joint "$directory/3-joint" "{path='$directory/2-region'}" "${changes[@]}" "${joint[@]}"
        measure "$directory"
    done < <(variants)
done

mkdir -p "$out/cost"
while IFS='|' read -r name region _; do
    mapfile -t region < <(fields "$region")
    "$program" bench --preset pico --threads 1 --runs 9 --json "${region[@]/#/--set=}" >"$out/cost/$name.json"
done < <(variants)

python3 reference/ablation/table.py "$out" "${TABLE:-docs/ablation.md}"
